// The library that ONNX Runtime registers: our operators, in a domain of their own.
//
// Elsewhere the operators: products_operator.cpp, attention_operator.cpp; when they are used:
//           kernels/native_operators.py.
// Source    docs/native.md

#include "attention_operator.h"
#include "operator.h"
#include "products.h"
#include "products_operator.h"

#if defined(_WIN32)
#define EXPORTED extern "C" __declspec(dllexport)
#else
#define EXPORTED extern "C" __attribute__((visibility("default")))
#endif

// NO, YES or BETTER_ELSEWHERE.
EXPORTED int rexthinker_edge_supported() { return supported(); }

// What ONNX Runtime calls when the library is registered with a session's options.
EXPORTED ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
    static const ort::CustomOp products = describe<Products>(), attention = describe<Attention>();
    const ort::Api api(base->get_api(ort::VERSION));
    return guarded(api, [&] {
        static ort::Domain* const domain = [&] {  // lives as long as any session may
            ort::Domain* made = nullptr;
            must(api.create_domain("rexthinker_edge", &made));
            must(api.add_operator(made, &products));
            must(api.add_operator(made, &attention));
            return made;
        }();
        must(api.add_domain(options, domain));
    });
}
