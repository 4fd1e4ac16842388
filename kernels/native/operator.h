// What an operator needs around its arithmetic: attributes, inputs and outputs, failures, its description.

#pragma once

#include <new>
#include <vector>

#include "ort_abi.h"

class Failure {
  public:
    explicit Failure(ort::Status* status) : status(status) {}
    ort::Status* status;  // ONNX Runtime's from here on
};

inline void must(ort::Status* status) {
    if (status) throw Failure(status);
}

inline Failure refusal(const ort::Api& api, const char* text) {
    return Failure(api.create_status(ort::INVALID_ARGUMENT, text));
}

inline size_t attribute(const ort::Api& api, const ort::KernelInfo* info, const char* name) {
    int64_t value = 0;
    must(api.attribute(info, name, &value));
    return static_cast<size_t>(value);
}

inline std::vector<int64_t> shape_of(const ort::Api& api, const ort::Value* value) {
    ort::TensorInfo* info = nullptr;
    must(api.tensor_info(value, &info));
    size_t axes = 0;
    ort::Status* status = api.axes(info, &axes);
    std::vector<int64_t> shape(axes);
    if (!status) status = api.shape(info, shape.data(), axes);
    api.release(info);
    must(status);
    return shape;
}

template <typename T>
struct Tensor {
    T* data = nullptr;  // null where an optional input is absent
    std::vector<int64_t> shape;

    size_t count() const {
        size_t numbers = 1;
        for (int64_t side : shape) numbers *= static_cast<size_t>(side);
        return numbers;
    }
};

template <typename T>
Tensor<const T> input(const ort::Api& api, const ort::Context* context, size_t index) {
    const ort::Value* value = nullptr;
    must(api.input(context, index, &value));
    if (!value) return {};
    void* data = nullptr;
    must(api.data(value, &data));
    return {static_cast<const T*>(data), shape_of(api, value)};
}

template <typename T>
Tensor<T> output(
    const ort::Api& api, ort::Context* context, size_t index, const std::vector<int64_t>& shape
) {
    ort::Value* value = nullptr;
    must(api.output(context, index, shape.data(), shape.size(), &value));
    void* data = nullptr;
    must(api.data(value, &data));
    return {static_cast<T*>(data), shape};
}

// Failures as ONNX Runtime wants them: no exception may pass.
template <typename Do>
ort::Status* guarded(const ort::Api& api, Do work) {
    try {
        work();
        return nullptr;
    } catch (const Failure& failure) {
        return failure.status;
    } catch (const std::bad_alloc&) {
        return api.create_status(ort::FAIL, "out of memory");
    }
}

// ONNX Runtime's description of `Operator`: NAME, INPUTS, REQUIRED (the first so many inputs), OUTPUTS,
// input_type(i), a constructor from (Api, KernelInfo) and compute(Context*). Outputs are float32.
template <typename Operator>
ort::CustomOp describe() {
    using Op = const ort::CustomOp*;
    struct Held {
        ort::Api api;
        Operator own;
    };
    ort::CustomOp op{};
    op.version = ort::VERSION;
    op.name = [](Op) { return Operator::NAME; };
    op.provider = [](Op) -> const char* { return "CPUExecutionProvider"; };
    op.inputs = [](Op) { return Operator::INPUTS; };
    op.input_type = [](Op, size_t i) { return Operator::input_type(i); };
    op.input_kind = [](Op, size_t i) { return i < Operator::REQUIRED ? ort::REQUIRED : ort::OPTIONAL; };
    op.input_memory = [](Op, size_t) { return 0; };
    op.input_arity = [](Op) { return 1; };
    op.input_alike = [](Op) { return 1; };
    op.outputs = [](Op) { return Operator::OUTPUTS; };
    op.output_type = [](Op, size_t) { return ort::FLOAT; };
    op.output_kind = [](Op, size_t) { return ort::REQUIRED; };
    op.output_arity = [](Op) { return 1; };
    op.output_alike = [](Op) { return 1; };
    op.start_version = [](Op) { return 1; };
    op.end_version = [](Op) { return 0x7FFFFFFF; };
    op.create_kernel_checked = [](Op, const void* table, const ort::KernelInfo* info, void** kernel) {
        const ort::Api api(table);
        return guarded(api, [&] { *kernel = new Held{api, Operator(api, info)}; });
    };
    op.compute_checked = [](void* kernel, ort::Context* context) {
        const Held& held = *static_cast<Held*>(kernel);
        return guarded(held.api, [&] { held.own.compute(held.api, context); });
    };
    op.destroy = [](void* kernel) { delete static_cast<Held*>(kernel); };
    return op;
}
