target triple = "x86_64-unknown-linux-gnu"
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
define i32 @matmul(ptr noalias readonly %args, ptr noalias readonly %symbols, ptr %services) nounwind {
entry:
  %buf3 = alloca [80 x float], align 64
  %a1 = getelementptr i64, ptr %symbols, i64 0
  %a2 = load i64, ptr %a1, align 8
  %a12 = getelementptr ptr, ptr %args, i64 0
  %a13 = load ptr, ptr %a12, align 8, !invariant.load !{}
  %a16 = getelementptr ptr, ptr %args, i64 1
  %a17 = load ptr, ptr %a16, align 8, !invariant.load !{}
  %a29 = mul nsw i64 %a2, 1
  %a30 = getelementptr float, ptr %a13, i64 %a29
  %a40 = getelementptr ptr, ptr %args, i64 2
  %a41 = load ptr, ptr %a40, align 8, !invariant.load !{}
  store <16 x float> splat (float 0x0000000000000000), ptr %buf3, align 4, !alias.scope !11, !noalias !12
  %v4 = getelementptr float, ptr %buf3, i64 16
  store <16 x float> splat (float 0x0000000000000000), ptr %v4, align 4, !alias.scope !11, !noalias !12
  %v5 = getelementptr float, ptr %buf3, i64 32
  store <16 x float> splat (float 0x0000000000000000), ptr %v5, align 4, !alias.scope !11, !noalias !12
  %v6 = getelementptr float, ptr %buf3, i64 48
  store <16 x float> splat (float 0x0000000000000000), ptr %v6, align 4, !alias.scope !11, !noalias !12
  br label %loop7
loop7:
  %i10 = phi i64 [ 0, %entry ], [ %n11, %latch8 ]
  %a14 = getelementptr float, ptr %a13, i64 %i10
  %a18 = mul nsw i64 %i10, 32
  %a19 = getelementptr float, ptr %a17, i64 %a18
  %a31 = getelementptr float, ptr %a30, i64 %i10
  %v15 = load float, ptr %a14, align 4, !alias.scope !5, !noalias !6, !invariant.load !{}
  %v20 = load <16 x float>, ptr %a19, align 4, !alias.scope !7, !noalias !8, !invariant.load !{}
  %v21 = load <16 x float>, ptr %buf3, align 4, !alias.scope !11, !noalias !12
  %v22 = insertelement <16 x float> poison, float %v15, i64 0
  %v23 = shufflevector <16 x float> %v22, <16 x float> poison, <16 x i32> zeroinitializer
  %v24 = call <16 x float> @llvm.fma.v16f32(<16 x float> %v23, <16 x float> %v20, <16 x float> %v21)
  store <16 x float> %v24, ptr %buf3, align 4, !alias.scope !11, !noalias !12
  %v25 = getelementptr float, ptr %a19, i64 16
  %v26 = load <16 x float>, ptr %v25, align 4, !alias.scope !7, !noalias !8, !invariant.load !{}
  %v27 = load <16 x float>, ptr %v4, align 4, !alias.scope !11, !noalias !12
  %v28 = call <16 x float> @llvm.fma.v16f32(<16 x float> %v23, <16 x float> %v26, <16 x float> %v27)
  store <16 x float> %v28, ptr %v4, align 4, !alias.scope !11, !noalias !12
  %v32 = load float, ptr %a31, align 4, !alias.scope !5, !noalias !6, !invariant.load !{}
  %v33 = load <16 x float>, ptr %v5, align 4, !alias.scope !11, !noalias !12
  %v34 = insertelement <16 x float> poison, float %v32, i64 0
  %v35 = shufflevector <16 x float> %v34, <16 x float> poison, <16 x i32> zeroinitializer
  %v36 = call <16 x float> @llvm.fma.v16f32(<16 x float> %v35, <16 x float> %v20, <16 x float> %v33)
  store <16 x float> %v36, ptr %v5, align 4, !alias.scope !11, !noalias !12
  %v37 = load <16 x float>, ptr %v6, align 4, !alias.scope !11, !noalias !12
  %v38 = call <16 x float> @llvm.fma.v16f32(<16 x float> %v35, <16 x float> %v26, <16 x float> %v37)
  store <16 x float> %v38, ptr %v6, align 4, !alias.scope !11, !noalias !12
  br label %latch8
latch8:
  %n11 = add nsw i64 %i10, 1
  %t39 = icmp slt i64 %n11, %a2
  br i1 %t39, label %loop7, label %after9
after9:
  %v42 = load <16 x float>, ptr %buf3, align 4, !alias.scope !11, !noalias !12
  store <16 x float> %v42, ptr %a41, align 4, !alias.scope !9, !noalias !10
  %v43 = getelementptr float, ptr %a41, i64 16
  %v44 = load <16 x float>, ptr %v4, align 4, !alias.scope !11, !noalias !12
  store <16 x float> %v44, ptr %v43, align 4, !alias.scope !9, !noalias !10
  %v45 = getelementptr float, ptr %a41, i64 32
  %v46 = load <16 x float>, ptr %v5, align 4, !alias.scope !11, !noalias !12
  store <16 x float> %v46, ptr %v45, align 4, !alias.scope !9, !noalias !10
  %v47 = getelementptr float, ptr %a41, i64 48
  %v48 = load <16 x float>, ptr %v6, align 4, !alias.scope !11, !noalias !12
  store <16 x float> %v48, ptr %v47, align 4, !alias.scope !9, !noalias !10
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
