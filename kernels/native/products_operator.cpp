#include "products_operator.h"

#include <algorithm>

namespace {

constexpr size_t X = 0, CODES = 1, SCALES = 2, ZEROS = 3, GROUPS = 4, BIAS = 5;
constexpr size_t SHARE = 131072;  // weights' bytes that are worth a thread's while

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

// An input that must hold `count` numbers.
template <typename T>
const T* sized(const ort::Api& api, const ort::Context* context, size_t index, size_t count) {
    const Tensor<const T> found = input<T>(api, context, index);
    if (found.data && found.count() != count) throw refusal(api, "MatMulNBits: an input of another size");
    return found.data;
}

}  // namespace

int Products::input_type(size_t index) {
    return index == CODES || index == ZEROS ? ort::UINT8 : index == GROUPS ? ort::INT32 : ort::FLOAT;
}

Products::Products(const ort::Api& api, const ort::KernelInfo* info) {
    weight_.rows = attribute(api, info, "N");
    weight_.columns = attribute(api, info, "K");
    weight_.block = attribute(api, info, "block_size");
    weight_.bits = static_cast<int>(attribute(api, info, "bits"));
    const size_t block = weight_.block;
    const bool known = block == 32 || block == 64 || block == 128 || block == 256;
    if (!known || (weight_.bits != 4 && weight_.bits != 8) || !weight_.rows || !weight_.columns)
        throw refusal(api, "MatMulNBits: 4 or 8 bits, blocks of 32 to 256");
    weight_.blocks = (weight_.columns + block - 1) / block;
}

void Products::compute(const ort::Api& api, ort::Context* context) const {
    Weight weight = weight_;
    weight.codes = sized<uint8_t>(api, context, CODES, weight.rows * weight.code_stride());
    weight.scales = sized<float>(api, context, SCALES, weight.rows * weight.blocks);
    weight.zeros = sized<uint8_t>(api, context, ZEROS, weight.rows * weight.zero_stride());
    weight.bias = sized<float>(api, context, BIAS, weight.rows);
    const Tensor<const float> x = input<float>(api, context, X);
    if (x.shape.empty() || x.shape.back() != static_cast<int64_t>(weight.columns))
        throw refusal(api, "MatMulNBits: x has not K columns");
    std::vector<int64_t> shape = x.shape;
    shape.back() = static_cast<int64_t>(weight.rows);
    const Tensor<float> out = output<float>(api, context, 0, shape);
    const size_t count = x.count() / weight.columns;
    if (!count) return;

    const size_t code_stride = rounded_codes(weight), scale_stride = rounded_scales(weight);
    const size_t scales = count * scale_stride;
    std::vector<Line> codes(count * code_stride / sizeof(Line)), numbers(lines(2 * scales * sizeof(float)));
    float* const first = numbers.data()->as<float>();
    const Rounded rounded{codes.data()->as<int8_t>(), first, first + scales, code_stride, scale_stride};
    Job job{x.data, &weight, rounded, out.data, count, (count + 15) / 16};
    if (job.shares == 1)
        Job::round(&job, 0);
    else
        must(api.parallel_for(context, Job::round, job.shares, &job));
    job.shares = std::clamp<size_t>(weight.rows * weight.code_stride() / SHARE, 1, weight.rows);
    must(api.parallel_for(context, Job::multiply, job.shares, &job));
}
