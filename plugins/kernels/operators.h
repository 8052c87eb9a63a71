// The one list of the operators: CMake, the TensorRT plugins, the torch library and the harness
// read it.
//
//     X(name in torch, name in ONNX and TensorRT, stem)
//
// Sources of the operators of a stem, each where it is needed: kernels/STEM_params.cpp,
// STEM_cpu.cpp and for instruction sets of their own STEM_cpu_{baseline,avx2,avx512}.cpp, STEM.cu,
// and tensorrt/STEM_plugin.cpp.
#pragma once

#define CARAFE_OPERATORS(X)                                \
    X(carafe, Carafe, carafe)                              \
    X(carafe_encoded, CarafeEncoded, carafe)               \
    X(rpn_candidates, RpnCandidates, candidates)           \
    X(multilevel_roi_align, MultilevelRoiAlign, roi_align) \
    X(box_candidates, BoxCandidates, candidates)           \
    X(batched_nms, BatchedNms, nms)
