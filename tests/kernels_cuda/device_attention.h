// Attention on the GPU over AttentionInputs, compared with the CPU twin.
#pragma once

#include "kernels/attention.h"
#include "tests/kernels_cuda/device_tensor.h"
#include "tests/testing/attention_inputs.h"
#include "tests/testing/compare.h"

namespace bough {

// f32 sums of up to 300 products of numbers below 4, and weights that sum to 1.
inline constexpr Tolerance kF32Tolerance = {.abs = 1e-5, .rel = 1e-5};
// bf16 answers. The plain kernel's sums are f32 too; tensor cores take weights p rounded to bf16 (f16
// with an e4m3 cache), so the answer is off by up to 2^-9 (2^-12) sum p |v| / sum p, |v| <= 2, times
// a v_scale of up to 2.
inline constexpr Tolerance kBF16Tolerance = {.abs = 1e-5, .rel = 1.0 / 256};
inline constexpr Tolerance kBF16WeightsTolerance = {.abs = 8e-3, .rel = 1.0 / 256};
inline constexpr Tolerance kF16WeightsTolerance = {.abs = 1e-3, .rel = 1.0 / 256};

inline Tolerance ToleranceOf(const AttentionShape& shape, DType dtype) {
  if (dtype == DType::kF32) return kF32Tolerance;
  if (shape.block_size != 64 || shape.head_dim % 64 != 0) return kBF16Tolerance;
  return shape.kv_dtype == DType::kBF16 ? kBF16WeightsTolerance : kF16WeightsTolerance;
}

// One for all launches, zeroed once: every launch must leave its counters zero.
inline void* AttentionWorkspace() {
  static void* const workspace = [] {
    void* memory = nullptr;
    const int64_t num_bytes = cuda::AttentionWorkspaceBytes(3072, 512, 32, 32, 128);
    CUDA_CHECK(cudaMalloc(&memory, num_bytes));
    CUDA_CHECK(cudaMemset(memory, 0, num_bytes));
    return memory;
  }();
  return workspace;
}

// Copies a batch to the device and runs the op over it there.
class DeviceAttention {
 public:
  // q and o of `dtype`.
  DeviceAttention(const AttentionInputs& inputs, DType dtype)
      : dtype_(dtype),
        q_(inputs.q, dtype),
        k_(inputs.k_bytes()),
        v_(inputs.v_bytes()),
        k_scale_(inputs.k_scale),
        v_scale_(inputs.v_scale),
        block_tables_(inputs.block_tables),
        cu_seqlens_q_(inputs.cu_seqlens_q),
        seqlens_kv_(inputs.seqlens_kv),
        nodes_(inputs.nodes),
        own_begin_(inputs.own_begin),
        o_(inputs.EmptyOutput(), dtype) {}

  std::vector<float> Run(PagedAttentionParams p) {
    Point(p);
    cuda::PlanAttention(p, nullptr);
    cuda::PagedAttention(p, nullptr);
    return o_.Floats();
  }

  std::vector<float> Output() const { return o_.Floats(); }
  int32_t* seqlens_kv() const { return seqlens_kv_.as<int32_t>(); }

  void Point(PagedAttentionParams& p) const {
    p.q = q_.data();
    p.k_cache = k_.as<void>();
    p.v_cache = v_.as<void>();
    if (p.k_scale != nullptr) p.k_scale = k_scale_.as<float>();
    if (p.v_scale != nullptr) p.v_scale = v_scale_.as<float>();
    p.block_tables = block_tables_.as<int32_t>();
    p.cu_seqlens_q = cu_seqlens_q_.as<int32_t>();
    p.seqlens_kv = seqlens_kv_.as<int32_t>();
    p.nodes = nodes_.as<SharedNode>();
    p.own_begin = own_begin_.as<int32_t>();
    p.o = o_.data();
    p.workspace = AttentionWorkspace();
    p.dtype = dtype_;
  }

 private:
  DType dtype_;
  DeviceTensor q_;
  DeviceBytes k_, v_, k_scale_, v_scale_, block_tables_, cu_seqlens_q_, seqlens_kv_, nodes_,
      own_begin_;
  DeviceTensor o_;
};

inline std::vector<double> Doubles(const std::vector<float>& v) { return {v.begin(), v.end()}; }

inline const std::vector<SequenceShape> kDecodeShapes = {
    {1, 0},  {1, 1},  {1, 15}, {1, 16},  {1, 17},  {1, 31},  {1, 32}, {1, 33},  {0, 70},  {1, 47},
    {1, 63}, {1, 64}, {1, 65}, {1, 127}, {1, 128}, {1, 129}, {1, 0},  {1, 200}, {1, 900}, {1, 0}};
inline const std::vector<std::pair<int, int>> kHeads = {{1, 1}, {4, 4}, {8, 2},  {12, 4},
                                                        {8, 1}, {9, 1}, {16, 1}, {32, 8}};
// What the tensor core kernels take. Slots without a key hold numbers that would show.
inline const std::vector<AttentionShape> kMmaShapes = {
    {.head_dim = 64, .kv_dtype = DType::kBF16, .unused = 300},
    {.head_dim = 128, .kv_dtype = DType::kBF16, .unused = 300},
    {.head_dim = 64, .kv_dtype = DType::kF8E4M3, .kv_scales = true, .unused = 300},
    {.head_dim = 128, .kv_dtype = DType::kF8E4M3, .kv_scales = true, .unused = 300}};

inline std::string Print(const AttentionShape& s) {
  return std::string(Name(s.kv_dtype)) + " " + std::to_string(s.num_heads) + "/" +
         std::to_string(s.num_kv_heads) + "x" + std::to_string(s.head_dim) + " window " +
         std::to_string(s.sliding_window);
}

// `q_scale` above 1 lets few keys weigh most, so that a lost one shows.
inline void ExpectAttentionAgrees(const AttentionShape& shape, const ForestShape& forest,
                                  DType dtype, float q_scale = 1) {
  SCOPED_TRACE(Print(shape));
  Random random(1);
  AttentionInputs inputs(random, shape, forest);
  for (float& x : inputs.q) x *= q_scale;
  inputs.q = Rounded(inputs.q, dtype);
  const std::vector<double> want = Doubles(inputs.RunPlain());
  inputs.HideSharedBlocks();
  const auto got = DeviceAttention(inputs, dtype).Run(inputs.Paged());
  EXPECT_TRUE(Close(got, want, inputs.OutputShape(), ToleranceOf(shape, dtype)));
}
inline void ExpectPagedAgrees(const AttentionShape& shape, const std::vector<SequenceShape>& seqs,
                              DType dtype, float q_scale = 1) {
  ExpectAttentionAgrees(shape, {seqs, {}}, dtype, q_scale);
}

}  // namespace bough
