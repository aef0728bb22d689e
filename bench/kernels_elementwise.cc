// Times the CUDA ops that are bound by memory, at Mixtral-8x7B's sizes:
//
//   bench-kernels-elementwise
//
// A graph of kLaunches launches, as a decode step would replay them, over kSets sets of tensors in
// turn. us: of one launch; TB/s: bytes that the op must read and write, over that time.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_check.h"
#include "kernels/elementwise.h"
#include "kernels/moe.h"
#include "kernels/sampling.h"

namespace bough {
namespace {

constexpr int kHidden = 4096, kIntermediate = 14336, kNumExperts = 8, kTopK = 2, kVocab = 32000;
constexpr int kNumHeads = 32, kNumKvHeads = 8, kHeadDim = 128, kBlockSize = 64;
constexpr int kQkv = (kNumHeads + 2 * kNumKvHeads) * kHeadDim;
constexpr int kLaunches = 16, kSets = 4, kReplays = 5;

// Device memory for the life of the program; bytes of 0x3c are small numbers in every dtype.
template <typename T = void>
T* Allocate(int64_t num_bytes) {
  void* data = nullptr;
  CUDA_CHECK(cudaMalloc(&data, num_bytes));
  CUDA_CHECK(cudaMemset(data, 0x3c, num_bytes));
  return static_cast<T*>(data);
}

template <typename T>
T* Upload(const std::vector<T>& values) {
  T* data = Allocate<T>(values.size() * sizeof(T));
  CUDA_CHECK(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return data;
}

// launch(set, stream) puts the op on the stream.
void Time(const std::string& name, int num_tokens, double bytes,
          const std::function<void(int, Stream)>& launch) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CUDA_CHECK(cudaStreamCreate(&stream));
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kLaunches; ++i) launch(i % kSets, stream);
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  CUDA_CHECK(cudaEventCreate(&begin));
  CUDA_CHECK(cudaEventCreate(&end));
  CUDA_CHECK(cudaGraphLaunch(exec, stream));
  float best_ms = 1e9f;
  for (int i = 0; i < kReplays; ++i) {
    float ms = 0;
    CUDA_CHECK(cudaEventRecord(begin, stream));
    CUDA_CHECK(cudaGraphLaunch(exec, stream));
    CUDA_CHECK(cudaEventRecord(end, stream));
    CUDA_CHECK(cudaEventSynchronize(end));
    CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    best_ms = std::min(best_ms, ms);
  }
  const double seconds = best_ms * 1e-3 / kLaunches;
  std::printf("%-34s %6d %9.2f us %7.3f TB/s\n", name.c_str(), num_tokens, seconds * 1e6,
              bytes / seconds * 1e-12);
  CUDA_CHECK(cudaGraphExecDestroy(exec));
  CUDA_CHECK(cudaGraphDestroy(graph));
  CUDA_CHECK(cudaStreamDestroy(stream));
}

// kSets tensors of that many bytes.
struct Sets {
  explicit Sets(int64_t num_bytes) {
    for (void*& set : data) set = Allocate(num_bytes);
  }
  ~Sets() {
    for (void* set : data) CUDA_CHECK(cudaFree(set));
  }
  void* operator[](int set) const { return data[set]; }
  void* data[kSets];
};

std::vector<int32_t> SpreadExperts(int num_tokens) {
  std::vector<int32_t> ids;
  for (int t = 0; t < num_tokens; ++t) {
    ids.push_back((t * 5 + t / 8) % kNumExperts);
    ids.push_back((ids.back() + 1 + t % 7) % kNumExperts);
  }
  return ids;
}

void TimeNorms(int num_tokens) {
  const double rows = 1.0 * num_tokens * kHidden;  // elements
  const Sets x(2 * rows * kTopK), residual(2 * rows), out(2 * rows);
  float* weight = Allocate<float>(kHidden * 4);
  float* scale = Allocate<float>(num_tokens * 4);
  float* expert_weights = Allocate<float>(num_tokens * kTopK * 4);
  int32_t* expert_ids = Allocate<int32_t>(num_tokens * kTopK * 4);
  std::vector<int32_t> pairs;
  for (int i = 0; i < num_tokens * kTopK; ++i) pairs.push_back(i);
  int32_t* row_of_pair = Upload(pairs);
  const auto params = [&](int set, bool combine) {
    AddRmsNormParams p = {.x = x[set],
                          .residual = residual[set],
                          .weight = weight,
                          .out = out[set],
                          .out_scale = scale,
                          .num_tokens = num_tokens,
                          .hidden_size = kHidden,
                          .dtype = DType::kBF16,
                          .out_dtype = DType::kF8E4M3};
    if (combine) {
      p.row_of_pair = row_of_pair;
      p.expert_weights = expert_weights;
      p.top_k = kTopK;
    }
    return p;
  };
  Time("AddRmsNorm bf16 -> f8", num_tokens, 7 * rows,
       [&](int set, Stream stream) { cuda::AddRmsNorm(params(set, false), stream); });
  Time("AddRmsNorm of pairs -> f8", num_tokens, 9 * rows,
       [&](int set, Stream stream) { cuda::AddRmsNorm(params(set, true), stream); });
  void* gate = Allocate(kNumExperts * kHidden * 2);
  Time("AddRmsNormGate bf16 -> f8", num_tokens, 7 * rows, [&](int set, Stream stream) {
    cuda::AddRmsNormGate({.norm = params(set, false),
                          .gate = gate,
                          .expert_ids = expert_ids,
                          .expert_weights = expert_weights,
                          .num_experts = kNumExperts,
                          .top_k = kTopK,
                          .gate_dtype = DType::kBF16},
                         stream);
  });
  int32_t* ids = Upload(SpreadExperts(num_tokens));
  int32_t* offsets = Allocate<int32_t>((kNumExperts + 1) * 4);
  float* row_scale = Allocate<float>(num_tokens * kTopK * 4);
  Time("MoeRoute f8 rows", num_tokens, (1 + kTopK) * rows, [&](int set, Stream stream) {
    cuda::MoeRoute({.expert_ids = ids,
                    .x = residual[set],
                    .x_scale = scale,
                    .expert_offsets = offsets,
                    .row_of_pair = row_of_pair,
                    .rows = x[set],
                    .row_scale = row_scale,
                    .num_tokens = num_tokens,
                    .top_k = kTopK,
                    .expert_end = kNumExperts,
                    .row_bytes = kHidden},
                   stream);
  });
  // Only the ids: what deriving the rows takes.
  Time("MoeRoute 16 B rows", num_tokens, 0, [&](int set, Stream stream) {
    cuda::MoeRoute({.expert_ids = ids,
                    .x = residual[set],
                    .expert_offsets = offsets,
                    .row_of_pair = row_of_pair,
                    .rows = x[set],
                    .num_tokens = num_tokens,
                    .top_k = kTopK,
                    .expert_end = kNumExperts,
                    .row_bytes = 16},
                   stream);
  });
  Time("MoeCombine bf16", num_tokens, 2 * (1 + kTopK) * rows, [&](int set, Stream stream) {
    cuda::MoeCombine({.rows = x[set],
                      .row_of_pair = row_of_pair,
                      .expert_weights = expert_weights,
                      .out = out[set],
                      .num_tokens = num_tokens,
                      .top_k = kTopK,
                      .hidden_size = kHidden,
                      .dtype = DType::kBF16},
                     stream);
  });
}

void TimeEmbeddingAndRope(int num_tokens) {
  const Sets qkv(2ll * num_tokens * kQkv);
  std::vector<int32_t> positions, ids;
  for (int t = 0; t < num_tokens; ++t) {
    positions.push_back(t);
    ids.push_back(t * 7919ll % kVocab);
  }
  const int32_t *device_positions = Upload(positions), *device_ids = Upload(ids);
  void* table = Allocate(2ll * kVocab * kHidden);
  Time("Embedding bf16", num_tokens, 4.0 * num_tokens * kHidden, [&](int set, Stream stream) {
    cuda::Embedding({.ids = device_ids,
                     .table = table,
                     .out = qkv[set],
                     .num_tokens = num_tokens,
                     .hidden_size = kHidden,
                     .dtype = DType::kBF16,
                     .table_dtype = DType::kBF16},
                    stream);
  });
  const int64_t cache_elements = (num_tokens + 64ll) * kNumKvHeads * kHeadDim;
  const Sets k(2 * cache_elements), v(2 * cache_elements);
  for (DType kv_dtype : {DType::kBF16, DType::kF8E4M3}) {
    const double kv = kNumKvHeads * kHeadDim;
    const double bytes = 2.0 * (2 * kQkv - kv) + 2 * kv * SizeOf(kv_dtype);
    Time(std::string("RopeAppend cache ") + Name(kv_dtype), num_tokens, bytes * num_tokens,
         [&](int set, Stream stream) {
           cuda::RopeAppend({.qkv = qkv[set],
                             .positions = device_positions,
                             .slot_mapping = device_positions,
                             .k_cache = k[set],
                             .v_cache = v[set],
                             .num_tokens = num_tokens,
                             .num_heads = kNumHeads,
                             .num_kv_heads = kNumKvHeads,
                             .head_dim = kHeadDim,
                             .block_size = kBlockSize,
                             .dtype = DType::kBF16,
                             .kv_dtype = kv_dtype},
                            stream);
         });
  }
}

void TimeSiluMul(int num_tokens) {
  const int num_rows = num_tokens * kTopK;
  const Sets gate_up(4ll * num_rows * kIntermediate), out(2ll * num_rows * kIntermediate);
  float* scale = Allocate<float>(num_rows * 4);
  int32_t* count = Upload(std::vector<int32_t>{num_rows});
  for (DType out_dtype : {DType::kF8E4M3, DType::kBF16}) {
    const double bytes = 4.0 + SizeOf(out_dtype);
    Time(std::string("SiluMul of pairs -> ") + Name(out_dtype), num_tokens,
         bytes * num_rows * kIntermediate, [&](int set, Stream stream) {
           cuda::SiluMul({.gate_up = gate_up[set],
                          .out = out[set],
                          .out_scale = scale,
                          .num_rows = count,
                          .num_tokens = num_rows,
                          .size = kIntermediate,
                          .dtype = DType::kBF16,
                          .out_dtype = out_dtype},
                         stream);
         });
  }
}

void TimeQuantize(int num_rows, int size) {
  const Sets x(2ll * num_rows * size), out(1ll * num_rows * size);
  float* scale = Allocate<float>(num_rows * 4);
  Time("Quantize rows of " + std::to_string(size), num_rows, 3.0 * num_rows * size,
       [&](int set, Stream stream) {
         cuda::Quantize({.x = x[set],
                         .out = out[set],
                         .scale = scale,
                         .num_rows = num_rows,
                         .size = size,
                         .dtype = DType::kBF16},
                        stream);
       });
}

// Logits like a model's: a few likely tokens over a long tail.
void TimeSample(const std::string& name, int num_rows, SamplingRow row) {
  std::vector<float> logits(int64_t{num_rows} * kVocab);
  uint32_t state = 1;
  for (float& x : logits) {
    state = state * 1664525u + 1013904223u;
    x = static_cast<float>(state >> 8) * 0x1p-24f * 8;
    if (state >> 28 == 7) x += 4;
  }
  std::vector<SamplingRow> rows(num_rows, row);
  for (int r = 0; r < num_rows; ++r) rows[r].logits_row = rows[r].position = r;
  float* device_logits = Upload(logits);
  SamplingRow* device_rows = Upload(rows);
  int32_t* tokens = Allocate<int32_t>(num_rows * 4);
  Time("Sample " + name, num_rows, 4.0 * num_rows * kVocab, [&](int, Stream stream) {
    cuda::Sample({.logits = device_logits,
                  .rows = device_rows,
                  .tokens = tokens,
                  .num_rows = num_rows,
                  .vocab_size = kVocab},
                 stream);
  });
  CUDA_CHECK(cudaFree(device_logits));
}

int Main() {
  std::printf("%-34s %6s\n", "op", "tokens");
  for (int num_tokens : {1, 64, 512, 8192}) {
    TimeNorms(num_tokens);
    TimeEmbeddingAndRope(num_tokens);
    TimeSiluMul(num_tokens);
  }
  TimeQuantize(8192, 4096);
  TimeQuantize(8192, 14336);
  TimeQuantize(4096, 28672);
  for (int num_rows : {1, 64}) {
    TimeSample("greedy", num_rows, {.temperature = 0});
    TimeSample("temperature 1", num_rows, {});
    TimeSample("top-p 0.9", num_rows, {.top_p = 0.9f});
    TimeSample("top-k 50", num_rows, {.top_k = 50});
  }
  return 0;
}

}  // namespace
}  // namespace bough

int main() { return bough::Main(); }
