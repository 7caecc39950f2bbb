target triple = "x86_64-unknown-linux-gnu"
declare i64 @llvm.smax.i64(i64, i64)
declare i64 @llvm.smin.i64(i64, i64)
define i32 @gather(ptr noalias readonly %args, ptr noalias readonly %symbols, ptr %services) nounwind {
entry:
  %flag1 = alloca i8, align 1
  %a7 = getelementptr ptr, ptr %args, i64 2
  %a8 = load ptr, ptr %a7, align 8, !invariant.load !{}
  %a11 = getelementptr ptr, ptr %args, i64 1
  %a12 = load ptr, ptr %a11, align 8, !invariant.load !{}
  %a13 = getelementptr ptr, ptr %args, i64 0
  %a14 = load ptr, ptr %a13, align 8, !invariant.load !{}
  store i8 0, ptr %flag1, align 1
  br label %loop2
loop2:
  %i5 = phi i64 [ 0, %entry ], [ %n6, %latch3 ]
  %a9 = mul nsw i64 %i5, 16
  %a10 = getelementptr float, ptr %a8, i64 %a9
  %a15 = getelementptr i64, ptr %a14, i64 %i5
  %v16 = load i64, ptr %a15, align 8, !alias.scope !4, !noalias !5, !invariant.load !{}
  %v17 = icmp uge i64 %v16, 50
  %v18 = load i8, ptr %flag1, align 1
  %v19 = zext i1 %v17 to i8
  %v20 = or i8 %v18, %v19
  store i8 %v20, ptr %flag1, align 1
  %v21 = call i64 @llvm.smax.i64(i64 %v16, i64 0)
  %v22 = call i64 @llvm.smin.i64(i64 %v21, i64 49)
  %v24 = mul nsw i64 %v22, 16
  %v25 = getelementptr float, ptr %a12, i64 %v24
  %v26 = load <16 x float>, ptr %v25, align 4, !alias.scope !6, !noalias !7, !invariant.load !{}
  store <16 x float> %v26, ptr %a10, align 4, !alias.scope !8, !noalias !9
  br label %latch3
latch3:
  %n6 = add nsw i64 %i5, 1
  %t27 = icmp slt i64 %n6, 7
  br i1 %t27, label %loop2, label %after4
after4:
  %v28 = load i8, ptr %flag1, align 1
  %v29 = zext i8 %v28 to i32
  ret i32 %v29
}
!0 = distinct !{!0}
!1 = distinct !{!1, !0}
!2 = distinct !{!2, !0}
!3 = distinct !{!3, !0}
!4 = !{!1}
!5 = !{!2, !3}
!6 = !{!2}
!7 = !{!1, !3}
!8 = !{!3}
!9 = !{!1, !2}
