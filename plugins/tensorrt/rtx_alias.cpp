// libtensorrt_rtx.so, the unversioned name, as an alias: nothing of its own, but the versioned
// library as a dependency. TensorRT-RTX's ONNX parser opens that name at the first plugin and ends
// the process when it is missing; NVIDIA's Python wheels lack it. Whoever has loaded the alias
// satisfies the parser, and symbols looked up in it are found in the versioned library.
