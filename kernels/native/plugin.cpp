// MatMulNBits of our own for ONNX Runtime: reads its inputs, rounds activations, shares rows among threads.
//
// What      Same inputs, attributes and meaning as com.microsoft's MatMulNBits at accuracy level 4, in the
//           domain below, so that a graph changes by a node's domain only. Weights are read where ONNX
//           Runtime mapped them: nothing is packed, copied or kept.
// Elsewhere the arithmetic: products.cpp; when it is used: runtime/native.py.
// Source    docs/native.md

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "ort_abi.h"
#include "products.h"

namespace {

constexpr char DOMAIN[] = "rexthinker_edge";
constexpr char OPERATOR[] = "MatMulNBits";
constexpr size_t X = 0, CODES = 1, SCALES = 2, ZEROS = 3, GROUPS = 4, BIAS = 5, INPUTS = 6;
constexpr size_t SHARE = 131072;  // weights' bytes that are worth a thread's while

class Failure {
  public:
    explicit Failure(ort::Status* status) : status(status) {}
    ort::Status* status;  // ONNX Runtime's from here on
};

void must(ort::Status* status) {
    if (status) throw Failure(status);
}

Failure refusal(const ort::Api& api, const char* text) {
    return Failure(api.create_status(ort::INVALID_ARGUMENT, text));
}

struct Kernel {
    ort::Api api;
    Weight weight;
};

int64_t attribute(const ort::Api& api, const ort::KernelInfo* info, const char* name) {
    int64_t value = 0;
    must(api.attribute(info, name, &value));
    return value;
}

std::unique_ptr<Kernel> create(const ort::Api& api, const ort::KernelInfo* info) {
    Weight weight{};
    weight.rows = static_cast<size_t>(attribute(api, info, "N"));
    weight.columns = static_cast<size_t>(attribute(api, info, "K"));
    weight.block = static_cast<size_t>(attribute(api, info, "block_size"));
    weight.bits = static_cast<int>(attribute(api, info, "bits"));
    const bool known = weight.block == 32 || weight.block == 64 || weight.block == 128 || weight.block == 256;
    if (!known || (weight.bits != 4 && weight.bits != 8) || !weight.rows || !weight.columns)
        throw refusal(api, "MatMulNBits: 4 or 8 bits, blocks of 32 to 256");
    weight.blocks = (weight.columns + weight.block - 1) / weight.block;
    return std::make_unique<Kernel>(Kernel{api, weight});
}

std::vector<int64_t> shape_of(const ort::Api& api, const ort::Value* value) {
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

// The bytes of an input that must hold `count` numbers; null where an optional one is absent.
template <typename T>
const T* input(const ort::Api& api, const ort::Context* context, size_t index, size_t count) {
    const ort::Value* value = nullptr;
    must(api.input(context, index, &value));
    if (!value) return nullptr;
    size_t held = 1;
    for (int64_t side : shape_of(api, value)) held *= static_cast<size_t>(side);
    if (held != count) throw refusal(api, "MatMulNBits: an input of another size");
    void* data = nullptr;
    must(api.data(value, &data));
    return static_cast<const T*>(data);
}

// Memory in whole cache lines, so that no load of activations crosses two.
struct alignas(64) Line {
    unsigned char bytes[64];

    template <typename T>
    T* as() {
        return reinterpret_cast<T*>(bytes);
    }
};

size_t lines(size_t bytes) { return (bytes + sizeof(Line) - 1) / sizeof(Line); }

struct Job {
    const float* x;
    const Weight* weight;
    Rounded rounded;
    float* out;
    size_t count, shares;

    static void round(void* data, size_t share) {
        const Job& job = *static_cast<Job*>(data);
        const size_t first = job.count * share / job.shares, last = job.count * (share + 1) / job.shares;
        for (size_t m = first; m < last; ++m)
            round_row(job.x + m * job.weight->columns, *job.weight, job.rounded, m);
    }

    static void multiply(void* data, size_t share) {
        const Job& job = *static_cast<Job*>(data);
        const size_t rows = job.weight->rows;
        const size_t first = rows * share / job.shares, last = rows * (share + 1) / job.shares;
        ::multiply(job.rounded, job.count, *job.weight, first, last, job.out);
    }
};

void compute(const Kernel& kernel, ort::Context* context) {
    const ort::Api& api = kernel.api;
    Weight weight = kernel.weight;
    weight.codes = input<uint8_t>(api, context, CODES, weight.rows * weight.code_stride());
    weight.scales = input<float>(api, context, SCALES, weight.rows * weight.blocks);
    weight.zeros = input<uint8_t>(api, context, ZEROS, weight.rows * weight.zero_stride());
    weight.bias = input<float>(api, context, BIAS, weight.rows);

    const ort::Value* given = nullptr;
    must(api.input(context, X, &given));
    std::vector<int64_t> shape = shape_of(api, given);
    if (shape.empty() || shape.back() != static_cast<int64_t>(weight.columns))
        throw refusal(api, "MatMulNBits: x has not K columns");
    void* x = nullptr;
    must(api.data(given, &x));
    size_t count = 1;
    for (size_t axis = 0; axis + 1 < shape.size(); ++axis) count *= static_cast<size_t>(shape[axis]);
    shape.back() = static_cast<int64_t>(weight.rows);
    ort::Value* produced = nullptr;
    must(api.output(context, 0, shape.data(), shape.size(), &produced));
    void* out = nullptr;
    must(api.data(produced, &out));
    if (!count) return;

    const size_t code_stride = rounded_codes(weight), scale_stride = rounded_scales(weight);
    const size_t scales = count * scale_stride;
    std::vector<Line> codes(count * code_stride / sizeof(Line)), numbers(lines(2 * scales * sizeof(float)));
    float* const first = numbers.data()->as<float>();
    const Rounded rounded{codes.data()->as<int8_t>(), first, first + scales, code_stride, scale_stride};
    Job job{static_cast<const float*>(x), &weight, rounded, static_cast<float*>(out), count, 1};
    job.shares = (count + 15) / 16;
    if (job.shares == 1)
        Job::round(&job, 0);
    else
        must(api.parallel_for(context, Job::round, job.shares, &job));
    job.shares = std::clamp<size_t>(weight.rows * weight.code_stride() / SHARE, 1, weight.rows);
    must(api.parallel_for(context, Job::multiply, job.shares, &job));
}

// Failures as ONNX Runtime wants them: no exception may pass.
template <typename Work>
ort::Status* guarded(const ort::Api& api, Work work) {
    try {
        work();
        return nullptr;
    } catch (const Failure& failure) {
        return failure.status;
    } catch (const std::bad_alloc&) {
        return api.create_status(ort::FAIL, "MatMulNBits: out of memory");
    }
}

ort::Status* create_checked(
    const ort::CustomOp*, const void* table, const ort::KernelInfo* info, void** kernel
) {
    const ort::Api api(table);
    return guarded(api, [&] { *kernel = create(api, info).release(); });
}

ort::Status* compute_checked(void* kernel, ort::Context* context) {
    const Kernel& own = *static_cast<Kernel*>(kernel);
    return guarded(own.api, [&] { compute(own, context); });
}

ort::CustomOp describe() {
    using Op = const ort::CustomOp*;
    ort::CustomOp op{};
    op.version = ort::VERSION;
    op.name = [](Op) { return OPERATOR; };
    op.provider = [](Op) -> const char* { return "CPUExecutionProvider"; };
    op.inputs = [](Op) { return INPUTS; };
    op.input_type = [](Op, size_t i) {
        return i == CODES || i == ZEROS ? ort::UINT8 : i == GROUPS ? ort::INT32 : ort::FLOAT;
    };
    op.input_kind = [](Op, size_t i) { return i < ZEROS ? ort::REQUIRED : ort::OPTIONAL; };
    op.input_memory = [](Op, size_t) { return 0; };
    op.input_arity = [](Op) { return 1; };
    op.input_alike = [](Op) { return 1; };
    op.outputs = [](Op) -> size_t { return 1; };
    op.output_type = [](Op, size_t) { return ort::FLOAT; };
    op.output_kind = [](Op, size_t) { return ort::REQUIRED; };
    op.output_arity = [](Op) { return 1; };
    op.output_alike = [](Op) { return 1; };
    op.start_version = [](Op) { return 1; };
    op.end_version = [](Op) { return 0x7FFFFFFF; };
    op.create_kernel_checked = create_checked;
    op.compute_checked = compute_checked;
    op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    return op;
}

}  // namespace

#if defined(_WIN32)
#define EXPORTED extern "C" __declspec(dllexport)
#else
#define EXPORTED extern "C" __attribute__((visibility("default")))
#endif

// NO, YES or BETTER_ELSEWHERE.
EXPORTED int rexthinker_edge_supported() { return supported(); }

// What ONNX Runtime calls when the library is registered with a session's options.
EXPORTED ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
    static const ort::CustomOp op = describe();
    const ort::Api api(base->get_api(ort::VERSION));
    return guarded(api, [&] {
        static ort::Domain* const domain = [&] {  // lives as long as any session may
            ort::Domain* made = nullptr;
            must(api.create_domain(DOMAIN, &made));
            must(api.add_operator(made, &op));
            return made;
        }();
        must(api.add_domain(options, domain));
    });
}
