target triple = "x86_64-unknown-linux-gnu"
define i32 @reduction(ptr noalias readonly %args, ptr noalias readonly %symbols, ptr %services) nounwind {
entry:
  %buf1 = alloca [32 x float], align 64
  %buf2 = alloca [17 x float], align 64
  %a8 = getelementptr ptr, ptr %args, i64 0
  %a9 = load ptr, ptr %a8, align 8, !invariant.load !{}
  %a49 = getelementptr ptr, ptr %args, i64 1
  %a50 = load ptr, ptr %a49, align 8, !invariant.load !{}
  store <16 x float> splat (float 0xFFF0000000000000), ptr %buf1, align 4, !alias.scope !9, !noalias !10
  br label %loop3
loop3:
  %i6 = phi i64 [ 0, %entry ], [ %n7, %latch4 ]
  %a10 = mul nsw i64 %i6, 16
  %a11 = getelementptr float, ptr %a9, i64 %a10
  %v12 = load <16 x float>, ptr %a11, align 4, !alias.scope !5, !noalias !6, !invariant.load !{}
  %v13 = load <16 x float>, ptr %buf1, align 4, !alias.scope !9, !noalias !10
  %v14 = fcmp ogt <16 x float> %v13, %v12
  %v15 = select <16 x i1> %v14, <16 x float> %v13, <16 x float> %v12
  %v16 = fcmp uno <16 x float> %v13, %v13
  %v17 = select <16 x i1> %v16, <16 x float> %v13, <16 x float> %v15
  store <16 x float> %v17, ptr %buf1, align 4, !alias.scope !9, !noalias !10
  br label %latch4
latch4:
  %n7 = add nsw i64 %i6, 1
  %t18 = icmp slt i64 %n7, 8
  br i1 %t18, label %loop3, label %after5
after5:
  store float 0xFFF0000000000000, ptr %buf2, align 4, !alias.scope !11, !noalias !12
  %v19 = load <16 x float>, ptr %buf1, align 4, !alias.scope !9, !noalias !10
  %v20 = shufflevector <16 x float> %v19, <16 x float> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %v21 = shufflevector <16 x float> %v19, <16 x float> poison, <8 x i32> <i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %v22 = fcmp ogt <8 x float> %v20, %v21
  %v23 = select <8 x i1> %v22, <8 x float> %v20, <8 x float> %v21
  %v24 = fcmp uno <8 x float> %v20, %v20
  %v25 = select <8 x i1> %v24, <8 x float> %v20, <8 x float> %v23
  %v26 = shufflevector <8 x float> %v25, <8 x float> poison, <4 x i32> <i32 0, i32 1, i32 2, i32 3>
  %v27 = shufflevector <8 x float> %v25, <8 x float> poison, <4 x i32> <i32 4, i32 5, i32 6, i32 7>
  %v28 = fcmp ogt <4 x float> %v26, %v27
  %v29 = select <4 x i1> %v28, <4 x float> %v26, <4 x float> %v27
  %v30 = fcmp uno <4 x float> %v26, %v26
  %v31 = select <4 x i1> %v30, <4 x float> %v26, <4 x float> %v29
  %v32 = shufflevector <4 x float> %v31, <4 x float> poison, <2 x i32> <i32 0, i32 1>
  %v33 = shufflevector <4 x float> %v31, <4 x float> poison, <2 x i32> <i32 2, i32 3>
  %v34 = fcmp ogt <2 x float> %v32, %v33
  %v35 = select <2 x i1> %v34, <2 x float> %v32, <2 x float> %v33
  %v36 = fcmp uno <2 x float> %v32, %v32
  %v37 = select <2 x i1> %v36, <2 x float> %v32, <2 x float> %v35
  %v38 = extractelement <2 x float> %v37, i64 0
  %v39 = extractelement <2 x float> %v37, i64 1
  %v40 = fcmp ogt float %v38, %v39
  %v41 = select i1 %v40, float %v38, float %v39
  %v42 = fcmp uno float %v38, %v38
  %v43 = select i1 %v42, float %v38, float %v41
  %v44 = load float, ptr %buf2, align 4, !alias.scope !11, !noalias !12
  %v45 = fcmp ogt float %v44, %v43
  %v46 = select i1 %v45, float %v44, float %v43
  %v47 = fcmp uno float %v44, %v44
  %v48 = select i1 %v47, float %v44, float %v46
  store float %v48, ptr %buf2, align 4, !alias.scope !11, !noalias !12
  %v51 = load float, ptr %buf2, align 4, !alias.scope !11, !noalias !12
  store float %v51, ptr %a50, align 4, !alias.scope !7, !noalias !8
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
