target triple = "x86_64-unknown-linux-gnu"
declare <16 x float> @llvm.maximum.v16f32(<16 x float>, <16 x float>)
declare <8 x float> @llvm.maximum.v8f32(<8 x float>, <8 x float>)
declare <4 x float> @llvm.maximum.v4f32(<4 x float>, <4 x float>)
declare <2 x float> @llvm.maximum.v2f32(<2 x float>, <2 x float>)
declare float @llvm.maximum.f32(float, float)
define i32 @reduction(ptr noalias readonly %args, ptr noalias readonly %symbols, ptr %services) nounwind {
entry:
  %buf1 = alloca [32 x float], align 64
  %buf2 = alloca [17 x float], align 64
  %a8 = getelementptr ptr, ptr %args, i64 0
  %a9 = load ptr, ptr %a8, align 8, !invariant.load !{}
  %a31 = getelementptr ptr, ptr %args, i64 1
  %a32 = load ptr, ptr %a31, align 8, !invariant.load !{}
  store <16 x float> splat (float 0xFFF0000000000000), ptr %buf1, align 4, !alias.scope !9, !noalias !10
  br label %loop3
loop3:
  %i6 = phi i64 [ 0, %entry ], [ %n7, %latch4 ]
  %a10 = mul nsw i64 %i6, 16
  %a11 = getelementptr float, ptr %a9, i64 %a10
  %v12 = load <16 x float>, ptr %a11, align 4, !alias.scope !5, !noalias !6, !invariant.load !{}
  %v13 = load <16 x float>, ptr %buf1, align 4, !alias.scope !9, !noalias !10
  %v14 = call nsz <16 x float> @llvm.maximum.v16f32(<16 x float> %v12, <16 x float> %v13)
  store <16 x float> %v14, ptr %buf1, align 4, !alias.scope !9, !noalias !10
  br label %latch4
latch4:
  %n7 = add nsw i64 %i6, 1
  %t15 = icmp slt i64 %n7, 8
  br i1 %t15, label %loop3, label %after5
after5:
  store float 0xFFF0000000000000, ptr %buf2, align 4, !alias.scope !11, !noalias !12
  %v16 = load <16 x float>, ptr %buf1, align 4, !alias.scope !9, !noalias !10
  %v17 = shufflevector <16 x float> %v16, <16 x float> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %v18 = shufflevector <16 x float> %v16, <16 x float> poison, <8 x i32> <i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %v19 = call nsz <8 x float> @llvm.maximum.v8f32(<8 x float> %v18, <8 x float> %v17)
  %v20 = shufflevector <8 x float> %v19, <8 x float> poison, <4 x i32> <i32 0, i32 1, i32 2, i32 3>
  %v21 = shufflevector <8 x float> %v19, <8 x float> poison, <4 x i32> <i32 4, i32 5, i32 6, i32 7>
  %v22 = call nsz <4 x float> @llvm.maximum.v4f32(<4 x float> %v21, <4 x float> %v20)
  %v23 = shufflevector <4 x float> %v22, <4 x float> poison, <2 x i32> <i32 0, i32 1>
  %v24 = shufflevector <4 x float> %v22, <4 x float> poison, <2 x i32> <i32 2, i32 3>
  %v25 = call nsz <2 x float> @llvm.maximum.v2f32(<2 x float> %v24, <2 x float> %v23)
  %v26 = extractelement <2 x float> %v25, i64 0
  %v27 = extractelement <2 x float> %v25, i64 1
  %v28 = call nsz float @llvm.maximum.f32(float %v27, float %v26)
  %v29 = load float, ptr %buf2, align 4, !alias.scope !11, !noalias !12
  %v30 = call nsz float @llvm.maximum.f32(float %v28, float %v29)
  store float %v30, ptr %buf2, align 4, !alias.scope !11, !noalias !12
  %v33 = load float, ptr %buf2, align 4, !alias.scope !11, !noalias !12
  store float %v33, ptr %a32, align 4, !alias.scope !7, !noalias !8
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
