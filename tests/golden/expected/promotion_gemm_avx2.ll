target triple = "x86_64-unknown-linux-gnu"
declare <4 x float> @llvm.masked.load.v4f32.p0(ptr, <4 x i1>, <4 x float>)
declare i64 @llvm.smin.i64(i64, i64)
define internal void @gemm.region0(ptr noalias readonly %frame, i64 %first, i64 %end) noinline nounwind {
entry:
  %buf21 = alloca [24 x float], align 64
  %a1 = getelementptr i64, ptr %frame, i64 0
  %a2 = load ptr, ptr %a1, align 8, !invariant.load !{}
  %a3 = getelementptr i64, ptr %frame, i64 1
  %a4 = load ptr, ptr %a3, align 8, !invariant.load !{}
  %a22 = getelementptr ptr, ptr %a2, i64 0
  %a23 = load ptr, ptr %a22, align 8, !invariant.load !{}
  %a46 = getelementptr ptr, ptr %a2, i64 1
  %a47 = load ptr, ptr %a46, align 8, !invariant.load !{}
  %a52 = getelementptr ptr, ptr %a2, i64 2
  %a53 = load ptr, ptr %a52, align 8, !invariant.load !{}
  %v8 = icmp slt i64 %first, %end
  br i1 %v8, label %loop5, label %after7
loop5:
  %i9 = phi i64 [ %first, %entry ], [ %n10, %latch6 ]
  %a24 = mul nsw i64 %i9, 12
  %a26 = getelementptr float, ptr %a23, i64 %a24
  %a29 = mul nsw i64 %i9, -2
  %a30 = add nsw i64 %a29, 3
  %a31 = icmp sge i64 %a30, 0
  %a48 = mul nsw i64 %i9, 8
  %a49 = getelementptr float, ptr %a47, i64 %a48
  br label %loop11
loop11:
  %i14 = phi i64 [ 0, %loop5 ], [ %n15, %latch12 ]
  %a38 = mul nsw i64 %i14, 2
  %a39 = add nsw i64 %a38, 2
  br label %loop16
loop16:
  %i19 = phi i64 [ 0, %loop11 ], [ %n20, %latch17 ]
  %a25 = mul nsw i64 %i19, 3
  %a27 = getelementptr float, ptr %a26, i64 %a25
  %a55 = getelementptr float, ptr %a53, i64 %a25
  %v28 = call <4 x float> @llvm.masked.load.v4f32.p0(ptr align 4 %a27, <4 x i1> <i1 true, i1 true, i1 true, i1 false>, <4 x float> poison), !alias.scope !5, !noalias !6
  store <4 x float> %v28, ptr %buf21, align 4, !alias.scope !11, !noalias !12
  br i1 %a31, label %then32, label %endif34
then32:
  %v35 = getelementptr float, ptr %buf21, i64 4
  %v36 = getelementptr float, ptr %a27, i64 6
  %v37 = call <4 x float> @llvm.masked.load.v4f32.p0(ptr align 4 %v36, <4 x i1> <i1 true, i1 true, i1 true, i1 false>, <4 x float> poison), !alias.scope !5, !noalias !6
  store <4 x float> %v37, ptr %v35, align 4, !alias.scope !11, !noalias !12
  br label %endif34
endif34:
  br label %loop40
loop40:
  %i43 = phi i64 [ %a38, %endif34 ], [ %n44, %latch41 ]
  %a50 = getelementptr float, ptr %a49, i64 %i43
  %a54 = mul nsw i64 %i43, 6
  %a56 = getelementptr float, ptr %a55, i64 %a54
  %v45 = load <4 x float>, ptr %buf21, align 4, !alias.scope !11, !noalias !12
  %v51 = load float, ptr %a50, align 4, !alias.scope !7, !noalias !8, !invariant.load !{}
  %v57 = call <4 x float> @llvm.masked.load.v4f32.p0(ptr align 4 %a56, <4 x i1> <i1 true, i1 true, i1 true, i1 false>, <4 x float> poison), !alias.scope !9, !noalias !10, !invariant.load !{}
  %v58 = insertelement <4 x float> poison, float %v51, i64 0
  %v59 = shufflevector <4 x float> %v58, <4 x float> poison, <4 x i32> zeroinitializer
  %v60 = fmul contract <4 x float> %v59, %v57
  %v61 = fadd contract <4 x float> %v45, %v60
  store <4 x float> %v61, ptr %buf21, align 4, !alias.scope !11, !noalias !12
  br i1 %a31, label %then62, label %endif64
then62:
  %v65 = getelementptr float, ptr %buf21, i64 4
  %v66 = load <4 x float>, ptr %v65, align 4, !alias.scope !11, !noalias !12
  %v67 = getelementptr float, ptr %a50, i64 4
  %v68 = load float, ptr %v67, align 4, !alias.scope !7, !noalias !8, !invariant.load !{}
  %v69 = insertelement <4 x float> poison, float %v68, i64 0
  %v70 = shufflevector <4 x float> %v69, <4 x float> poison, <4 x i32> zeroinitializer
  %v71 = fmul contract <4 x float> %v70, %v57
  %v72 = fadd contract <4 x float> %v66, %v71
  store <4 x float> %v72, ptr %v65, align 4, !alias.scope !11, !noalias !12
  br label %endif64
endif64:
  br label %latch41
latch41:
  %n44 = add nsw i64 %i43, 1
  %t73 = icmp slt i64 %n44, %a39
  br i1 %t73, label %loop40, label %after42
after42:
  %v74 = load <4 x float>, ptr %buf21, align 4, !alias.scope !11, !noalias !12
  %v75 = shufflevector <4 x float> %v74, <4 x float> poison, <2 x i32> <i32 0, i32 1>
  store <2 x float> %v75, ptr %a27, align 4, !alias.scope !5, !noalias !6
  %v76 = extractelement <4 x float> %v74, i64 2
  %v77 = getelementptr float, ptr %a27, i64 2
  store float %v76, ptr %v77, align 4, !alias.scope !5, !noalias !6
  br i1 %a31, label %then78, label %endif80
then78:
  %v81 = getelementptr float, ptr %a27, i64 6
  %v82 = getelementptr float, ptr %buf21, i64 4
  %v83 = load <4 x float>, ptr %v82, align 4, !alias.scope !11, !noalias !12
  %v84 = shufflevector <4 x float> %v83, <4 x float> poison, <2 x i32> <i32 0, i32 1>
  store <2 x float> %v84, ptr %v81, align 4, !alias.scope !5, !noalias !6
  %v85 = extractelement <4 x float> %v83, i64 2
  %v86 = getelementptr float, ptr %v81, i64 2
  store float %v85, ptr %v86, align 4, !alias.scope !5, !noalias !6
  br label %endif80
endif80:
  br label %latch17
latch17:
  %n20 = add nsw i64 %i19, 1
  %t87 = icmp slt i64 %n20, 2
  br i1 %t87, label %loop16, label %after18
after18:
  br label %latch12
latch12:
  %n15 = add nsw i64 %i14, 1
  %t88 = icmp slt i64 %n15, 2
  br i1 %t88, label %loop11, label %after13
after13:
  br label %latch6
latch6:
  %n10 = add nsw i64 %i9, 1
  %t89 = icmp slt i64 %n10, %end
  br i1 %t89, label %loop5, label %after7
after7:
  ret void
}
define internal void @gemm.region0.thread(ptr %frame) nounwind {
entry:
  %services.at = getelementptr i64, ptr %frame, i64 2
  %services = load ptr, ptr %services.at, align 8
  %total.at = getelementptr i64, ptr %frame, i64 4
  %total = load i64, ptr %total.at, align 8
  %next.at = getelementptr i64, ptr %frame, i64 5
  %count.at = getelementptr i64, ptr %services, i64 2
  %count.fn = load ptr, ptr %count.at, align 8
  %count32 = call i32 %count.fn()
  %count = sext i32 %count32 to i64
  %chunks = mul i64 %count, 16
  %share = udiv i64 %total, %chunks
  %none = icmp eq i64 %share, 0
  %chunk = select i1 %none, i64 1, i64 %share
  br label %take
take:
  %first = atomicrmw add ptr %next.at, i64 %chunk monotonic
  %any = icmp slt i64 %first, %total
  br i1 %any, label %work, label %done
work:
  %after = add i64 %first, %chunk
  %end = call i64 @llvm.smin.i64(i64 %after, i64 %total)
  call void @gemm.region0(ptr %frame, i64 %first, i64 %end)
  br label %take
done:
  ret void
}
define i32 @gemm(ptr noalias readonly %args, ptr noalias readonly %symbols, ptr %services) nounwind {
entry:
  %frame1 = alloca [6 x i64], align 8
  %a8 = load ptr, ptr %services, align 8
  %a9 = getelementptr i64, ptr %services, i64 3
  %a10 = load i64, ptr %a9, align 8
  %v2 = getelementptr i64, ptr %frame1, i64 0
  store ptr %args, ptr %v2, align 8
  %v3 = getelementptr i64, ptr %frame1, i64 1
  store ptr %symbols, ptr %v3, align 8
  %v4 = getelementptr i64, ptr %frame1, i64 2
  store ptr %services, ptr %v4, align 8
  %v5 = getelementptr i64, ptr %frame1, i64 3
  store ptr null, ptr %v5, align 8
  %v6 = getelementptr i64, ptr %frame1, i64 4
  store i64 3, ptr %v6, align 8
  %v7 = getelementptr i64, ptr %frame1, i64 5
  store i64 0, ptr %v7, align 8
  %v11 = icmp ne ptr %a8, null
  %v12 = icmp sgt i64 %a10, 1
  %v13 = and i1 %v11, %v12
  %v14 = trunc i64 %a10 to i32
  br i1 %v13, label %team15, label %alone16
team15:
  call void %a8(ptr @gemm.region0.thread, ptr %frame1, i32 %v14, i32 0)
  br label %joined17
alone16:
  call void @gemm.region0(ptr %frame1, i64 0, i64 3)
  br label %joined17
joined17:
  ret i32 0
}
!0 = distinct !{!0}
!1 = distinct !{!1, !0}
!2 = distinct !{!2, !0}
!3 = distinct !{!3, !0}
!4 = distinct !{!4, !0}
!5 = !{!1}
!6 = !{!2, !3, !4}
!7 = !{!2}
!8 = !{!1, !3, !4}
!9 = !{!3}
!10 = !{!1, !2, !4}
!11 = !{!4}
!12 = !{!1, !2, !3}
