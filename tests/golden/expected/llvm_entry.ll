target triple = "x86_64-unknown-linux-gnu"
define i32 @entry(ptr noalias %table, ptr noalias %tensors, ptr noalias %symbols, ptr %services) nounwind {
entry:
  %args = alloca [2 x ptr], align 16
  %values = alloca [1 x i64], align 16
  %table0.at = getelementptr i64, ptr %table, i64 0
  %table0 = load ptr, ptr %table0.at, align 8, !invariant.load !{}
  %tensors2.at = getelementptr i64, ptr %tensors, i64 2
  %tensors2 = load ptr, ptr %tensors2.at, align 8, !invariant.load !{}
  %c0.args0 = getelementptr i64, ptr %args, i64 0
  store ptr %tensors2, ptr %c0.args0, align 8
  %tensors0.at = getelementptr i64, ptr %tensors, i64 0
  %tensors0 = load ptr, ptr %tensors0.at, align 8, !invariant.load !{}
  %c0.args1 = getelementptr i64, ptr %args, i64 1
  store ptr %tensors0, ptr %c0.args1, align 8
  %symbols1.at = getelementptr i64, ptr %symbols, i64 1
  %symbols1 = load i64, ptr %symbols1.at, align 8, !invariant.load !{}
  %c0.values0 = getelementptr i64, ptr %values, i64 0
  store i64 %symbols1, ptr %c0.values0, align 8
  %r0 = call i32 %table0(ptr %args, ptr %values, ptr %services)
  %ok0 = icmp eq i32 %r0, 0
  br i1 %ok0, label %next0, label %failed
next0:
  %table1.at = getelementptr i64, ptr %table, i64 1
  %table1 = load ptr, ptr %table1.at, align 8, !invariant.load !{}
  %c1.args0 = getelementptr i64, ptr %args, i64 0
  store ptr %tensors2, ptr %c1.args0, align 8
  %r1 = call i32 %table1(ptr %args, ptr %values, ptr %services)
  %ok1 = icmp eq i32 %r1, 0
  br i1 %ok1, label %next1, label %failed
next1:
  %c2.args0 = getelementptr i64, ptr %args, i64 0
  store ptr %tensors0, ptr %c2.args0, align 8
  %tensors1.at = getelementptr i64, ptr %tensors, i64 1
  %tensors1 = load ptr, ptr %tensors1.at, align 8, !invariant.load !{}
  %c2.args1 = getelementptr i64, ptr %args, i64 1
  store ptr %tensors1, ptr %c2.args1, align 8
  %symbols0.at = getelementptr i64, ptr %symbols, i64 0
  %symbols0 = load i64, ptr %symbols0.at, align 8, !invariant.load !{}
  %c2.values0 = getelementptr i64, ptr %values, i64 0
  store i64 %symbols0, ptr %c2.values0, align 8
  %r2 = call i32 %table0(ptr %args, ptr %values, ptr %services)
  %ok2 = icmp eq i32 %r2, 0
  br i1 %ok2, label %next2, label %failed
next2:
  ret i32 0
failed:
  %code = phi i32 [ %r0, %entry ], [ %r1, %next0 ], [ %r2, %next1 ]
  ret i32 %code
}
