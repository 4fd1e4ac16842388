// The part of ONNX Runtime's C interface that our operators call, and nothing else of it.
//
// Layout    `OrtApi` is a table of function pointers that only ever grows at its end, so a function's place
//           in it holds for every later version; `OrtCustomOp` likewise, by its field `version`.
// Contract  Places are those of ONNX Runtime 1.17 and later; `Api` is asked for that version.
// Source    onnxruntime_c_api.h, ORT_API_VERSION 17 (docs/sources.md#ort-abi)

#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

constexpr uint32_t VERSION = 17;
constexpr int FLOAT = 1, UINT8 = 2, INT32 = 6, INT64 = 7;        // ONNXTensorElementDataType
constexpr int REQUIRED = 0, OPTIONAL = 1;  // OrtCustomOpInputOutputCharacteristic
constexpr int FAIL = 1, INVALID_ARGUMENT = 2;

struct Status;
struct Context;
struct KernelInfo;
struct Value;
struct TensorInfo;
struct Domain;
struct SessionOptions;

using Work = void(void* data, size_t index);

// One table of pointers, read by place.
class Api {
  public:
    explicit Api(const void* table) : table_(static_cast<void* const*>(table)) {}

    Status* create_status(int code, const char* text) const {
        return get<Status*(int, const char*)>(0)(code, text);
    }
    Status* create_domain(const char* name, Domain** out) const {
        return get<Status*(const char*, Domain**)>(26)(name, out);
    }
    Status* add_operator(Domain* domain, const void* op) const {
        return get<Status*(Domain*, const void*)>(27)(domain, op);
    }
    Status* add_domain(SessionOptions* options, Domain* domain) const {
        return get<Status*(SessionOptions*, Domain*)>(28)(options, domain);
    }
    Status* data(const Value* value, void** out) const {
        return get<Status*(const Value*, void**)>(51)(value, out);
    }
    Status* axes(const TensorInfo* info, size_t* out) const {
        return get<Status*(const TensorInfo*, size_t*)>(61)(info, out);
    }
    Status* shape(const TensorInfo* info, int64_t* out, size_t count) const {
        return get<Status*(const TensorInfo*, int64_t*, size_t)>(62)(info, out, count);
    }
    Status* tensor_info(const Value* value, TensorInfo** out) const {
        return get<Status*(const Value*, TensorInfo**)>(65)(value, out);
    }
    Status* attribute(const KernelInfo* info, const char* name, int64_t* out) const {
        return get<Status*(const KernelInfo*, const char*, int64_t*)>(86)(info, name, out);
    }
    Status* input(const Context* context, size_t index, const Value** out) const {
        return get<Status*(const Context*, size_t, const Value**)>(90)(context, index, out);
    }
    Status* output(Context* context, size_t index, const int64_t* shape, size_t axes, Value** out) const {
        using Signature = Status*(Context*, size_t, const int64_t*, size_t, Value**);
        return get<Signature>(91)(context, index, shape, axes, out);
    }
    void release(TensorInfo* info) const { get<void(TensorInfo*)>(99)(info); }
    // Calls work(data, i) for every i below `total`, on the session's own threads.
    Status* parallel_for(const Context* context, Work* work, size_t total, void* data) const {
        using Signature = Status*(const Context*, Work*, size_t, size_t, void*);
        return get<Signature>(274)(context, work, total, total, data);
    }

  private:
    template <typename Signature>
    Signature* get(size_t place) const {
        return reinterpret_cast<Signature*>(table_[place]);
    }
    void* const* table_;
};

struct ApiBase {
    const void* (*get_api)(uint32_t version);
    const char* (*version)();
};

// OrtCustomOp up to the fields of version 17.
struct CustomOp {
    uint32_t version;
    void* (*create_kernel)(const CustomOp*, const void* api, const KernelInfo*);
    const char* (*name)(const CustomOp*);
    const char* (*provider)(const CustomOp*);
    int (*input_type)(const CustomOp*, size_t);
    size_t (*inputs)(const CustomOp*);
    int (*output_type)(const CustomOp*, size_t);
    size_t (*outputs)(const CustomOp*);
    void (*compute)(void* kernel, Context*);
    void (*destroy)(void* kernel);
    int (*input_kind)(const CustomOp*, size_t);
    int (*output_kind)(const CustomOp*, size_t);
    int (*input_memory)(const CustomOp*, size_t);
    int (*input_arity)(const CustomOp*);
    int (*input_alike)(const CustomOp*);
    int (*output_arity)(const CustomOp*);
    int (*output_alike)(const CustomOp*);
    Status* (*create_kernel_checked)(const CustomOp*, const void* api, const KernelInfo*, void** kernel);
    Status* (*compute_checked)(void* kernel, Context*);
    Status* (*infer_shapes)(const CustomOp*, void*);
    int (*start_version)(const CustomOp*);
    int (*end_version)(const CustomOp*);
    size_t (*may_inplace)(int**, int**);
    void (*release_may_inplace)(int*, int*);
    size_t (*alias_map)(int**, int**);
    void (*release_alias_map)(int*, int*);
};

}  // namespace ort
