target triple = "x86_64-unknown-linux-gnu"
declare <4 x float> @llvm.masked.load.v4f32.p0(ptr, <4 x i1>, <4 x float>)
declare <4 x float> @llvm.arithmetic.fence.v4f32(<4 x float>)
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
  %a48 = getelementptr ptr, ptr %a2, i64 1
  %a49 = load ptr, ptr %a48, align 8, !invariant.load !{}
  %a54 = getelementptr ptr, ptr %a2, i64 2
  %a55 = load ptr, ptr %a54, align 8, !invariant.load !{}
  %v8 = icmp slt i64 %first, %end
  br i1 %v8, label %loop5, label %after7
loop5:
  %i9 = phi i64 [ %first, %entry ], [ %n10, %latch6 ]
  %a24 = mul nsw i64 %i9, 12
  %a26 = getelementptr float, ptr %a23, i64 %a24
  %a30 = mul nsw i64 %i9, -2
  %a31 = add nsw i64 %a30, 3
  %a32 = icmp sge i64 %a31, 0
  %a50 = mul nsw i64 %i9, 8
  %a51 = getelementptr float, ptr %a49, i64 %a50
  br label %loop11
loop11:
  %i14 = phi i64 [ 0, %loop5 ], [ %n15, %latch12 ]
  %a40 = mul nsw i64 %i14, 2
  %a41 = add nsw i64 %a40, 2
  br label %loop16
loop16:
  %i19 = phi i64 [ 0, %loop11 ], [ %n20, %latch17 ]
  %a25 = mul nsw i64 %i19, 3
  %a27 = getelementptr float, ptr %a26, i64 %a25
  %a57 = getelementptr float, ptr %a55, i64 %a25
  %v28 = call <4 x float> @llvm.masked.load.v4f32.p0(ptr align 4 %a27, <4 x i1> <i1 true, i1 true, i1 true, i1 false>, <4 x float> poison), !alias.scope !5, !noalias !6
  %v29 = call <4 x float> @llvm.arithmetic.fence.v4f32(<4 x float> %v28)
  store <4 x float> %v29, ptr %buf21, align 4, !alias.scope !11, !noalias !12
  br i1 %a32, label %then33, label %endif35
then33:
  %v36 = getelementptr float, ptr %buf21, i64 4
  %v37 = getelementptr float, ptr %a27, i64 6
  %v38 = call <4 x float> @llvm.masked.load.v4f32.p0(ptr align 4 %v37, <4 x i1> <i1 true, i1 true, i1 true, i1 false>, <4 x float> poison), !alias.scope !5, !noalias !6
  %v39 = call <4 x float> @llvm.arithmetic.fence.v4f32(<4 x float> %v38)
  store <4 x float> %v39, ptr %v36, align 4, !alias.scope !11, !noalias !12
  br label %endif35
endif35:
  br label %loop42
loop42:
  %i45 = phi i64 [ %a40, %endif35 ], [ %n46, %latch43 ]
  %a52 = getelementptr float, ptr %a51, i64 %i45
  %a56 = mul nsw i64 %i45, 6
  %a58 = getelementptr float, ptr %a57, i64 %a56
  %v47 = load <4 x float>, ptr %buf21, align 4, !alias.scope !11, !noalias !12
  %v53 = load float, ptr %a52, align 4, !alias.scope !7, !noalias !8, !invariant.load !{}
  %v59 = call <4 x float> @llvm.masked.load.v4f32.p0(ptr align 4 %a58, <4 x i1> <i1 true, i1 true, i1 true, i1 false>, <4 x float> poison), !alias.scope !9, !noalias !10, !invariant.load !{}
  %v60 = call <4 x float> @llvm.arithmetic.fence.v4f32(<4 x float> %v59)
  %v61 = insertelement <4 x float> poison, float %v53, i64 0
  %v62 = shufflevector <4 x float> %v61, <4 x float> poison, <4 x i32> zeroinitializer
  %v63 = fmul contract <4 x float> %v62, %v60
  %v64 = fadd contract <4 x float> %v47, %v63
  store <4 x float> %v64, ptr %buf21, align 4, !alias.scope !11, !noalias !12
  br i1 %a32, label %then65, label %endif67
then65:
  %v68 = getelementptr float, ptr %buf21, i64 4
  %v69 = load <4 x float>, ptr %v68, align 4, !alias.scope !11, !noalias !12
  %v70 = getelementptr float, ptr %a52, i64 4
  %v71 = load float, ptr %v70, align 4, !alias.scope !7, !noalias !8, !invariant.load !{}
  %v72 = insertelement <4 x float> poison, float %v71, i64 0
  %v73 = shufflevector <4 x float> %v72, <4 x float> poison, <4 x i32> zeroinitializer
  %v74 = fmul contract <4 x float> %v73, %v60
  %v75 = fadd contract <4 x float> %v69, %v74
  store <4 x float> %v75, ptr %v68, align 4, !alias.scope !11, !noalias !12
  br label %endif67
endif67:
  br label %latch43
latch43:
  %n46 = add nsw i64 %i45, 1
  %t76 = icmp slt i64 %n46, %a41
  br i1 %t76, label %loop42, label %after44
after44:
  %v77 = load <4 x float>, ptr %buf21, align 4, !alias.scope !11, !noalias !12
  %v78 = shufflevector <4 x float> %v77, <4 x float> poison, <2 x i32> <i32 0, i32 1>
  store <2 x float> %v78, ptr %a27, align 4, !alias.scope !5, !noalias !6
  %v79 = extractelement <4 x float> %v77, i64 2
  %v80 = getelementptr float, ptr %a27, i64 2
  store float %v79, ptr %v80, align 4, !alias.scope !5, !noalias !6
  br i1 %a32, label %then81, label %endif83
then81:
  %v84 = getelementptr float, ptr %a27, i64 6
  %v85 = getelementptr float, ptr %buf21, i64 4
  %v86 = load <4 x float>, ptr %v85, align 4, !alias.scope !11, !noalias !12
  %v87 = shufflevector <4 x float> %v86, <4 x float> poison, <2 x i32> <i32 0, i32 1>
  store <2 x float> %v87, ptr %v84, align 4, !alias.scope !5, !noalias !6
  %v88 = extractelement <4 x float> %v86, i64 2
  %v89 = getelementptr float, ptr %v84, i64 2
  store float %v88, ptr %v89, align 4, !alias.scope !5, !noalias !6
  br label %endif83
endif83:
  br label %latch17
latch17:
  %n20 = add nsw i64 %i19, 1
  %t90 = icmp slt i64 %n20, 2
  br i1 %t90, label %loop16, label %after18
after18:
  br label %latch12
latch12:
  %n15 = add nsw i64 %i14, 1
  %t91 = icmp slt i64 %n15, 2
  br i1 %t91, label %loop11, label %after13
after13:
  br label %latch6
latch6:
  %n10 = add nsw i64 %i9, 1
  %t92 = icmp slt i64 %n10, %end
  br i1 %t92, label %loop5, label %after7
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
