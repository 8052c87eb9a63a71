// Compiled where ONNXRUNTIME_ROOT names a release with headers: what ort.h says is what they say.
#include <onnxruntime_c_api.h>

#include "ort.h"

namespace carafe::ort {

#define CARAFE_SAME_FUNCTION(entry, name) \
    static_assert(entry::position * sizeof(void*) == offsetof(OrtApi, name), #name)
CARAFE_SAME_FUNCTION(CreateStatus, CreateStatus);
CARAFE_SAME_FUNCTION(CreateDomain, CreateCustomOpDomain);
CARAFE_SAME_FUNCTION(AddToDomain, CustomOpDomain_Add);
CARAFE_SAME_FUNCTION(AddDomain, AddCustomOpDomain);
CARAFE_SAME_FUNCTION(TensorData, GetTensorMutableData);
CARAFE_SAME_FUNCTION(CreateShape, CreateTensorTypeAndShapeInfo);
CARAFE_SAME_FUNCTION(SetElement, SetTensorElementType);
CARAFE_SAME_FUNCTION(SetDimensions, SetDimensions);
CARAFE_SAME_FUNCTION(ElementOf, GetTensorElementType);
CARAFE_SAME_FUNCTION(DimensionCount, GetDimensionsCount);
CARAFE_SAME_FUNCTION(Dimensions, GetDimensions);
CARAFE_SAME_FUNCTION(Symbols, GetSymbolicDimensions);
CARAFE_SAME_FUNCTION(ShapeOf, GetTensorTypeAndShape);
CARAFE_SAME_FUNCTION(CreateMemoryInfo, CreateMemoryInfo);
CARAFE_SAME_FUNCTION(DeviceNumber, MemoryInfoGetId);
CARAFE_SAME_FUNCTION(FloatAttribute, KernelInfoGetAttribute_float);
CARAFE_SAME_FUNCTION(IntAttribute, KernelInfoGetAttribute_int64);
CARAFE_SAME_FUNCTION(InputCount, KernelContext_GetInputCount);
CARAFE_SAME_FUNCTION(Input, KernelContext_GetInput);
CARAFE_SAME_FUNCTION(Output, KernelContext_GetOutput);
CARAFE_SAME_FUNCTION(ReleaseStatus, ReleaseStatus);
CARAFE_SAME_FUNCTION(ReleaseMemoryInfo, ReleaseMemoryInfo);
CARAFE_SAME_FUNCTION(ReleaseShape, ReleaseTensorTypeAndShapeInfo);
CARAFE_SAME_FUNCTION(AvailableProviders, GetAvailableProviders);
CARAFE_SAME_FUNCTION(ReleaseProviders, ReleaseAvailableProviders);
CARAFE_SAME_FUNCTION(IntsAttribute, KernelInfoGetAttributeArray_int64);
CARAFE_SAME_FUNCTION(Stream, KernelContext_GetGPUComputeStream);
CARAFE_SAME_FUNCTION(MemoryOf, GetTensorMemoryInfo);
CARAFE_SAME_FUNCTION(ShapeInputCount, ShapeInferContext_GetInputCount);
CARAFE_SAME_FUNCTION(ShapeInput, ShapeInferContext_GetInputTypeShape);
CARAFE_SAME_FUNCTION(ShapeAttribute, ShapeInferContext_GetAttribute);
CARAFE_SAME_FUNCTION(SetShapeOutput, ShapeInferContext_SetOutputTypeShape);
CARAFE_SAME_FUNCTION(SetSymbols, SetSymbolicDimensions);
CARAFE_SAME_FUNCTION(ReadAttribute, ReadOpAttr);
CARAFE_SAME_FUNCTION(ParallelFor, KernelContext_ParallelFor);
CARAFE_SAME_FUNCTION(ScratchBuffer, KernelContext_GetScratchBuffer);

#define CARAFE_SAME_FIELD(field, name) \
    static_assert(offsetof(CustomOp, field) == offsetof(OrtCustomOp, name), #name)
CARAFE_SAME_FIELD(name, GetName);
CARAFE_SAME_FIELD(provider, GetExecutionProviderType);
CARAFE_SAME_FIELD(input_element, GetInputType);
CARAFE_SAME_FIELD(input_count, GetInputTypeCount);
CARAFE_SAME_FIELD(output_element, GetOutputType);
CARAFE_SAME_FIELD(output_count, GetOutputTypeCount);
CARAFE_SAME_FIELD(destroy, KernelDestroy);
CARAFE_SAME_FIELD(input_characteristic, GetInputCharacteristic);
CARAFE_SAME_FIELD(output_characteristic, GetOutputCharacteristic);
CARAFE_SAME_FIELD(input_memory, GetInputMemoryType);
CARAFE_SAME_FIELD(variadic_input_arity, GetVariadicInputMinArity);
CARAFE_SAME_FIELD(variadic_input_homogeneity, GetVariadicInputHomogeneity);
CARAFE_SAME_FIELD(variadic_output_arity, GetVariadicOutputMinArity);
CARAFE_SAME_FIELD(variadic_output_homogeneity, GetVariadicOutputHomogeneity);
CARAFE_SAME_FIELD(create, CreateKernelV2);
CARAFE_SAME_FIELD(compute, KernelComputeV2);
CARAFE_SAME_FIELD(infer_shapes, InferOutputShapeFn);
CARAFE_SAME_FIELD(start_version, GetStartVersion);
CARAFE_SAME_FIELD(end_version, GetEndVersion);
CARAFE_SAME_FIELD(may_inplace, GetMayInplace);
CARAFE_SAME_FIELD(release_alias_map, ReleaseAliasMap);

static_assert(kFail == ORT_FAIL && kInvalidArgument == ORT_INVALID_ARGUMENT);
static_assert(kFloat == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
static_assert(kInt32 == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32);
static_assert(kInt64 == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
static_assert(kHalf == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16);
static_assert(kBFloat16 == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16);
static_assert(kRequired == INPUT_OUTPUT_REQUIRED && kVariadic == INPUT_OUTPUT_VARIADIC);
static_assert(kArena == OrtArenaAllocator && kDefault == OrtMemTypeDefault);
static_assert(kInt == ORT_OP_ATTR_INT && kInts == ORT_OP_ATTR_INTS);
static_assert(kFloatNumber == ORT_OP_ATTR_FLOAT);

}  // namespace carafe::ort
