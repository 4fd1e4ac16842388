// GroupQueryAttention of our own: writes new keys and values into the cache, shares rows among threads.
//
// What      Inputs, attributes and meaning of com.microsoft's GroupQueryAttention as kernels/
//           grouped_query_attention.py lowers it: one sequence, no rotation, a bias or none. The cache is
//           written in place where past and present are one buffer, which is how decoder.py binds them.
// Elsewhere the arithmetic: attention.cpp.

#pragma once

#include "operator.h"

class Attention {
  public:
    static constexpr const char* NAME = "GroupQueryAttention";
    static constexpr size_t INPUTS = 11, REQUIRED = 7, OUTPUTS = 3;
    static int input_type(size_t index);

    Attention(const ort::Api& api, const ort::KernelInfo* info);
    void compute(const ort::Api& api, ort::Context* context) const;

  private:
    size_t heads_, key_heads_;
};
