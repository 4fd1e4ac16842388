// MatMulNBits of our own: reads its inputs, rounds the activations, shares rows of the weight among threads.
//
// What      Same inputs, attributes and meaning as com.microsoft's MatMulNBits at accuracy level 4. Weights
//           are read where ONNX Runtime mapped them: nothing is packed, copied or kept.
// Elsewhere the arithmetic: products.cpp, rounding.cpp.

#pragma once

#include "operator.h"
#include "products.h"

class Products {
  public:
    static constexpr const char* NAME = "MatMulNBits";
    static constexpr size_t INPUTS = 6, REQUIRED = 3, OUTPUTS = 1;
    static int input_type(size_t index);

    Products(const ort::Api& api, const ort::KernelInfo* info);
    void compute(const ort::Api& api, ort::Context* context) const;

  private:
    Weight weight_{};
};
