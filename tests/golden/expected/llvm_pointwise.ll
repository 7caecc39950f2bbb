target triple = "x86_64-unknown-linux-gnu"
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
declare <16 x float> @llvm.x86.avx512.permvar.sf.512(<16 x float>, <16 x i32>)
declare <16 x float> @llvm.x86.avx512.mask.scalef.ps.512(<16 x float>, <16 x float>, <16 x float>, i16, i32)
declare <8 x float> @llvm.masked.load.v8f32.p0(ptr, <8 x i1>, <8 x float>)
declare <8 x float> @llvm.arithmetic.fence.v8f32(<8 x float>)
declare <8 x float> @llvm.fma.v8f32(<8 x float>, <8 x float>, <8 x float>)
declare <8 x float> @llvm.x86.avx512.mask.scalef.ps.256(<8 x float>, <8 x float>, <8 x float>, i8)
declare void @llvm.masked.store.v8f32.p0(<8 x float>, ptr, <8 x i1>)
declare i64 @llvm.smin.i64(i64, i64)
define internal void @pointwise.region0(ptr noalias readonly %frame, i64 %first, i64 %end) noinline nounwind {
entry:
  %a1 = getelementptr i64, ptr %frame, i64 0
  %a2 = load ptr, ptr %a1, align 8, !invariant.load !{}
  %a3 = getelementptr i64, ptr %frame, i64 1
  %a4 = load ptr, ptr %a3, align 8, !invariant.load !{}
  %a16 = getelementptr ptr, ptr %a2, i64 1
  %a17 = load ptr, ptr %a16, align 8, !invariant.load !{}
  %a22 = getelementptr ptr, ptr %a2, i64 0
  %a23 = load ptr, ptr %a22, align 8, !invariant.load !{}
  %v8 = icmp slt i64 %first, %end
  br i1 %v8, label %loop5, label %after7
loop5:
  %i9 = phi i64 [ %first, %entry ], [ %n10, %latch6 ]
  %a18 = mul nsw i64 %i9, 101
  %a20 = getelementptr float, ptr %a17, i64 %a18
  %a24 = getelementptr float, ptr %a23, i64 %a18
  br label %loop11
loop11:
  %i14 = phi i64 [ 0, %loop5 ], [ %n15, %latch12 ]
  %a19 = mul nsw i64 %i14, 16
  %a21 = getelementptr float, ptr %a20, i64 %a19
  %a25 = getelementptr float, ptr %a24, i64 %a19
  %v26 = load <16 x float>, ptr %a25, align 4, !alias.scope !3, !noalias !4, !invariant.load !{}
  %v27 = call <16 x float> @nestor.exp.v16f32(<16 x float> %v26)
  store <16 x float> %v27, ptr %a21, align 4, !alias.scope !5, !noalias !6
  br label %latch12
latch12:
  %n15 = add nsw i64 %i14, 1
  %t28 = icmp slt i64 %n15, 6
  br i1 %t28, label %loop11, label %after13
after13:
  %v29 = getelementptr float, ptr %a20, i64 96
  %v30 = getelementptr float, ptr %a24, i64 96
  %v31 = call <8 x float> @llvm.masked.load.v8f32.p0(ptr align 4 %v30, <8 x i1> <i1 true, i1 true, i1 true, i1 true, i1 true, i1 false, i1 false, i1 false>, <8 x float> poison), !alias.scope !3, !noalias !4, !invariant.load !{}
  %v32 = call <8 x float> @llvm.arithmetic.fence.v8f32(<8 x float> %v31)
  %v33 = call <8 x float> @nestor.exp.v8f32(<8 x float> %v32)
  call void @llvm.masked.store.v8f32.p0(<8 x float> %v33, ptr align 4 %v29, <8 x i1> <i1 true, i1 true, i1 true, i1 true, i1 true, i1 false, i1 false, i1 false>), !alias.scope !5, !noalias !6
  br label %latch6
latch6:
  %n10 = add nsw i64 %i9, 1
  %t34 = icmp slt i64 %n10, %end
  br i1 %t34, label %loop5, label %after7
after7:
  ret void
}
define internal void @pointwise.region0.thread(ptr %frame) nounwind {
entry:
  %services.at = getelementptr i64, ptr %frame, i64 2
  %services = load ptr, ptr %services.at, align 8
  %total.at = getelementptr i64, ptr %frame, i64 4
  %total = load i64, ptr %total.at, align 8
  %number.at = getelementptr i64, ptr %services, i64 1
  %number.fn = load ptr, ptr %number.at, align 8
  %count.at = getelementptr i64, ptr %services, i64 2
  %count.fn = load ptr, ptr %count.at, align 8
  %number32 = call i32 %number.fn()
  %count32 = call i32 %count.fn()
  %number = sext i32 %number32 to i64
  %count = sext i32 %count32 to i64
  %share = udiv i64 %total, %count
  %extra = urem i64 %total, %count
  %base = mul i64 %number, %share
  %before = call i64 @llvm.smin.i64(i64 %number, i64 %extra)
  %first = add i64 %base, %before
  %one.more = icmp slt i64 %number, %extra
  %more = zext i1 %one.more to i64
  %own = add i64 %share, %more
  %end = add i64 %first, %own
  %any = icmp slt i64 %first, %end
  br i1 %any, label %work, label %done
work:
  call void @pointwise.region0(ptr %frame, i64 %first, i64 %end)
  br label %done
done:
  ret void
}
define i32 @pointwise(ptr noalias readonly %args, ptr noalias readonly %symbols, ptr %services) nounwind {
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
  store i64 900, ptr %v6, align 8
  %v7 = getelementptr i64, ptr %frame1, i64 5
  store i64 0, ptr %v7, align 8
  %v11 = icmp ne ptr %a8, null
  %v12 = icmp sgt i64 %a10, 1
  %v13 = and i1 %v11, %v12
  %v14 = trunc i64 %a10 to i32
  br i1 %v13, label %team15, label %alone16
team15:
  call void %a8(ptr @pointwise.region0.thread, ptr %frame1, i32 %v14, i32 0)
  br label %joined17
alone16:
  call void @pointwise.region0(ptr %frame1, i64 0, i64 900)
  br label %joined17
joined17:
  ret i32 0
}
define internal <16 x float> @nestor.exp.v16f32(<16 x float> %x0) alwaysinline nounwind memory(none) {
entry:
  %v1 = fcmp ogt <16 x float> %x0, splat (float 0x4056400000000000)
  %v2 = select <16 x i1> %v1, <16 x float> splat (float 0x4056400000000000), <16 x float> %x0
  %v3 = fcmp olt <16 x float> %v2, splat (float 0xC05A000000000000)
  %v4 = select <16 x i1> %v3, <16 x float> splat (float 0xC05A000000000000), <16 x float> %v2
  %v5 = call <16 x float> @llvm.fma.v16f32(<16 x float> %v4, <16 x float> splat (float 0x3FF7154760000000), <16 x float> splat (float 0x4128000000000000))
  %v6 = fsub <16 x float> %v5, splat (float 0x4128000000000000)
  %v7 = call <16 x float> @llvm.fma.v16f32(<16 x float> %v6, <16 x float> splat (float 0xBFE62E4000000000), <16 x float> %v4)
  %v8 = call <16 x float> @llvm.fma.v16f32(<16 x float> %v6, <16 x float> splat (float 0xBEB7F7D1C0000000), <16 x float> %v7)
  %v9 = bitcast <16 x float> %v5 to <16 x i32>
  %v10 = call <16 x float> @llvm.x86.avx512.permvar.sf.512(<16 x float> <float 0x3FF0000000000000, float 0x3FF0B55860000000, float 0x3FF172B840000000, float 0x3FF2387A60000000, float 0x3FF306FE00000000, float 0x3FF3DEA640000000, float 0x3FF4BFDAE0000000, float 0x3FF5AB07E0000000, float 0x3FF6A09E60000000, float 0x3FF7A11480000000, float 0x3FF8ACE540000000, float 0x3FF9C49180000000, float 0x3FFAE89FA0000000, float 0x3FFC199BE0000000, float 0x3FFD5818E0000000, float 0x3FFEA4AFA0000000>, <16 x i32> %v9)
  %v11 = call <16 x float> @llvm.x86.avx512.permvar.sf.512(<16 x float> <float 0x0000000000000000, float 0x3E68D96D40000000, float 0xBE49C0C220000000, float 0x3E69649040000000, float 0x3E61250020000000, float 0x3E6370BE40000000, float 0xBE60A35500000000, float 0xBE400D8AC0000000, float 0x3E526055C0000000, float 0xBE605CB440000000, float 0x3E367A1CA0000000, float 0x3E3A3B5E40000000, float 0xBE4F9C3040000000, float 0xBE36961B40000000, float 0xBE3A5217C0000000, float 0x3E361428E0000000>, <16 x i32> %v9)
  %v12 = call <16 x float> @llvm.fma.v16f32(<16 x float> %v8, <16 x float> splat (float 0x3FC5557620000000), <16 x float> splat (float 0x3FE0002200000000))
  %v13 = call <16 x float> @llvm.fma.v16f32(<16 x float> %v8, <16 x float> %v12, <16 x float> splat (float 0x3FF0000000000000))
  %v14 = call <16 x float> @llvm.fma.v16f32(<16 x float> %v8, <16 x float> %v13, <16 x float> %v11)
  %v15 = call <16 x float> @llvm.fma.v16f32(<16 x float> %v10, <16 x float> %v14, <16 x float> %v10)
  %v16 = call <16 x float> @llvm.x86.avx512.mask.scalef.ps.512(<16 x float> %v15, <16 x float> %v6, <16 x float> zeroinitializer, i16 -1, i32 4)
  ret <16 x float> %v16
}
define internal <8 x float> @nestor.exp.v8f32(<8 x float> %x0) alwaysinline nounwind memory(none) {
entry:
  %v1 = fcmp ogt <8 x float> %x0, splat (float 0x4056400000000000)
  %v2 = select <8 x i1> %v1, <8 x float> splat (float 0x4056400000000000), <8 x float> %x0
  %v3 = fcmp olt <8 x float> %v2, splat (float 0xC05A000000000000)
  %v4 = select <8 x i1> %v3, <8 x float> splat (float 0xC05A000000000000), <8 x float> %v2
  %v5 = call <8 x float> @llvm.fma.v8f32(<8 x float> %v4, <8 x float> splat (float 0x3FF7154760000000), <8 x float> splat (float 0x4128000000000000))
  %v6 = fsub <8 x float> %v5, splat (float 0x4128000000000000)
  %v7 = call <8 x float> @llvm.fma.v8f32(<8 x float> %v6, <8 x float> splat (float 0xBFE62E4000000000), <8 x float> %v4)
  %v8 = call <8 x float> @llvm.fma.v8f32(<8 x float> %v6, <8 x float> splat (float 0xBEB7F7D1C0000000), <8 x float> %v7)
  %v9 = bitcast <8 x float> %v5 to <8 x i32>
  %v10 = shufflevector <8 x i32> %v9, <8 x i32> poison, <16 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison>
  %v11 = call <16 x float> @llvm.x86.avx512.permvar.sf.512(<16 x float> <float 0x3FF0000000000000, float 0x3FF0B55860000000, float 0x3FF172B840000000, float 0x3FF2387A60000000, float 0x3FF306FE00000000, float 0x3FF3DEA640000000, float 0x3FF4BFDAE0000000, float 0x3FF5AB07E0000000, float 0x3FF6A09E60000000, float 0x3FF7A11480000000, float 0x3FF8ACE540000000, float 0x3FF9C49180000000, float 0x3FFAE89FA0000000, float 0x3FFC199BE0000000, float 0x3FFD5818E0000000, float 0x3FFEA4AFA0000000>, <16 x i32> %v10)
  %v12 = shufflevector <16 x float> %v11, <16 x float> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %v13 = call <16 x float> @llvm.x86.avx512.permvar.sf.512(<16 x float> <float 0x0000000000000000, float 0x3E68D96D40000000, float 0xBE49C0C220000000, float 0x3E69649040000000, float 0x3E61250020000000, float 0x3E6370BE40000000, float 0xBE60A35500000000, float 0xBE400D8AC0000000, float 0x3E526055C0000000, float 0xBE605CB440000000, float 0x3E367A1CA0000000, float 0x3E3A3B5E40000000, float 0xBE4F9C3040000000, float 0xBE36961B40000000, float 0xBE3A5217C0000000, float 0x3E361428E0000000>, <16 x i32> %v10)
  %v14 = shufflevector <16 x float> %v13, <16 x float> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %v15 = call <8 x float> @llvm.fma.v8f32(<8 x float> %v8, <8 x float> splat (float 0x3FC5557620000000), <8 x float> splat (float 0x3FE0002200000000))
  %v16 = call <8 x float> @llvm.fma.v8f32(<8 x float> %v8, <8 x float> %v15, <8 x float> splat (float 0x3FF0000000000000))
  %v17 = call <8 x float> @llvm.fma.v8f32(<8 x float> %v8, <8 x float> %v16, <8 x float> %v14)
  %v18 = call <8 x float> @llvm.fma.v8f32(<8 x float> %v12, <8 x float> %v17, <8 x float> %v12)
  %v19 = call <8 x float> @llvm.x86.avx512.mask.scalef.ps.256(<8 x float> %v18, <8 x float> %v6, <8 x float> zeroinitializer, i8 -1)
  ret <8 x float> %v19
}
!0 = distinct !{!0}
!1 = distinct !{!1, !0}
!2 = distinct !{!2, !0}
!3 = !{!1}
!4 = !{!2}
!5 = !{!2}
!6 = !{!1}
