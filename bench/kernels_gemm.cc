// Times Gemm and GroupedGemm at Mixtral-8x7B's shapes, each in a CUDA graph of launches that take
// their weights in turn from a buffer far larger than L2.
//
//   bench-kernels-gemm            the tiles that PickConfig takes
//   bench-kernels-gemm --sweep    every tile, best first: what PickConfig should take
//   bench-kernels-gemm --dense    few tokens at the shapes of dense 7B models, with or without --sweep
//
// Between two launches stands a small kernel that depends on both, as in a model; the time of a graph
// of small kernels alone is taken off.
#include <cuda_fp8.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/gemm_config.h"

namespace bough {
namespace {

constexpr int64_t kWeightsBytes = 4ll << 30;
constexpr int kMaxTokens = 16384, kMaxWidth = 32000;
constexpr double kPeakBytesPerSecond = 4.6e12;  // what an H200 reads at best

// Elements in a bell around 0, as weights and activations are, until the memory is full.
void FillRandomly(void* device, int64_t num_bytes, DType dtype) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<uint8_t> block(16 << 20);
  for (size_t i = 0; i < block.size(); i += SizeOf(dtype)) {
    const float value = normal(random);
    const uint16_t bits = dtype == DType::kBF16
                              ? FloatToBF16(value)
                              : __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
    std::memcpy(&block[i], &bits, SizeOf(dtype));
  }
  for (int64_t at = 0; at < num_bytes; at += block.size()) {
    CUDA_CHECK(cudaMemcpy(static_cast<uint8_t*>(device) + at, block.data(),
                          std::min<int64_t>(block.size(), num_bytes - at), cudaMemcpyHostToDevice));
  }
}

struct Shape {
  const char* name;
  int num_experts, n, k;
  bool f32_out;
};
constexpr Shape kShapes[] = {{"experts up", 8, 28672, 4096, false},
                             {"experts down", 8, 4096, 14336, false},
                             {"qkv", 1, 6144, 4096, false},
                             {"o", 1, 4096, 4096, false},
                             {"lm_head", 1, 32000, 4096, true}};
constexpr int kNumTokens[] = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 8192};
constexpr Shape kDenseShapes[] = {
    {"qkv 32:32", 1, 12288, 4096, false},  {"qkv 32:8", 1, 6144, 4096, false},
    {"o", 1, 4096, 4096, false},           {"up 11008", 1, 22016, 4096, false},
    {"down 11008", 1, 4096, 11008, false}, {"up 14336", 1, 28672, 4096, false},
    {"down 14336", 1, 4096, 14336, false}};
constexpr int kFewTokens[] = {1, 16, 64, 128};

class Bench {
 public:
  Bench() {
    CUDA_CHECK(cudaMalloc(&weights_, kWeightsBytes));
    CUDA_CHECK(cudaMalloc(&x_, int64_t{2} * kMaxTokens * 14336 * 2));
    CUDA_CHECK(cudaMalloc(&y_, int64_t{2} * kMaxTokens * kMaxWidth * 4));
    CUDA_CHECK(cudaMalloc(&scales_, 8 * kMaxWidth * sizeof(float)));
    CUDA_CHECK(cudaMalloc(&small_y_, 64 * sizeof(float)));
    CUDA_CHECK(cudaMalloc(&offsets_, 9 * sizeof(int32_t)));
    CUDA_CHECK(cudaMalloc(&workspace_, kGemmWorkspaceBytes));
    CUDA_CHECK(cudaMemset(workspace_, 0, kGemmWorkspaceBytes));
    const std::vector<float> scales(8 * kMaxWidth, 1.0f / 128);
    CUDA_CHECK(
        cudaMemcpy(scales_, scales.data(), scales.size() * sizeof(float), cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaDeviceGetAttribute(&num_sms_, cudaDevAttrMultiProcessorCount, 0));
    CUDA_CHECK(cudaStreamCreate(&stream_));
  }

  // Few tokens first: what heats the GPU slows what comes after.
  void Run(DType dtype, std::span<const Shape> shapes, std::span<const int> tokens, bool sweep) {
    Fill(dtype);
    for (int num_tokens : tokens) {
      std::printf("%s, %d tokens\n", Name(dtype), num_tokens);
      for (const Shape& shape : shapes) {
        if (shape.f32_out && dtype != DType::kBF16) continue;
        const int num_rows = shape.num_experts > 1 ? 2 * num_tokens : num_tokens;
        const int num_busy = Route(shape, num_tokens);
        const cuda::GemmConfig pick = cuda::PickConfig(num_rows, shape.num_experts, shape.n,
                                                       shape.k * SizeOf(dtype), num_sms_);
        if (sweep) {
          Sweep(shape, dtype, num_rows, num_busy, pick);
        } else {
          Print(shape, dtype, num_rows, num_busy, pick, Time(shape, dtype, num_rows, pick));
        }
      }
    }
  }

 private:
  void Fill(DType dtype) {
    FillRandomly(weights_, kWeightsBytes, dtype);
    FillRandomly(x_, int64_t{2} * kMaxTokens * 14336 * 2, dtype);
  }

  // Each token takes two experts at random; how many experts have rows.
  int Route(const Shape& shape, int num_tokens) {
    if (shape.num_experts == 1) return 1;
    std::mt19937 random(num_tokens);
    std::vector<int32_t> offsets(shape.num_experts + 1);
    for (int t = 0; t < num_tokens; ++t) {
      const int first = random() % shape.num_experts;
      const int second = (first + 1 + random() % (shape.num_experts - 1)) % shape.num_experts;
      ++offsets[first + 1];
      ++offsets[second + 1];
    }
    const int num_idle = std::count(offsets.begin() + 1, offsets.end(), 0);
    for (int e = 0; e < shape.num_experts; ++e) offsets[e + 1] += offsets[e];
    CUDA_CHECK(cudaMemcpy(offsets_, offsets.data(), offsets.size() * sizeof(int32_t),
                          cudaMemcpyHostToDevice));
    return shape.num_experts - num_idle;
  }

  // Seconds per launch.
  double Time(const Shape& shape, DType dtype, int num_rows, const cuda::GemmConfig& config) {
    const int64_t bytes = int64_t{shape.num_experts} * shape.n * shape.k * SizeOf(dtype);
    const int num_buffers = static_cast<int>(kWeightsBytes / bytes);
    const double flops = 2.0 * num_rows * shape.n * shape.k;
    const double estimate = std::max(bytes / kPeakBytesPerSecond, flops / 600e12);
    const int num_launches = std::clamp(static_cast<int>(4e-3 / estimate), 2, 200);
    const bool e4m3 = dtype == DType::kF8E4M3;
    const double both = TimeGraph(num_launches, [&](int i) {
      LaunchSmallKernel();
      cuda::TiledGemm({.x = x_,
                       .x_scale = e4m3 ? scales_ : nullptr,
                       .w = static_cast<uint8_t*>(weights_) + i % num_buffers * bytes,
                       .w_scale = e4m3 ? scales_ : nullptr,
                       .expert_offsets = shape.num_experts > 1 ? offsets_ : nullptr,
                       .y = y_,
                       .workspace = workspace_,
                       .num_experts = shape.num_experts,
                       .num_rows = num_rows,
                       .n = shape.n,
                       .k = shape.k,
                       .dtype = dtype,
                       .w_dtype = dtype,
                       .out_dtype = shape.f32_out ? DType::kF32 : DType::kBF16},
                      config, stream_);
    });
    if (small_seconds_ == 0) small_seconds_ = TimeGraph(200, [&](int) { LaunchSmallKernel(); });
    return both - small_seconds_;
  }

  void LaunchSmallKernel() {
    cuda::SimpleGemm({.x = scales_,
                      .w = scales_,
                      .expert_offsets = nullptr,
                      .y = small_y_,
                      .num_experts = 1,
                      .num_rows = 1,
                      .n = 64,
                      .k = 32},
                     stream_);
  }

  // Seconds per call of launch(i) captured in a graph: the median of five replays.
  template <typename LaunchOne>
  double TimeGraph(int num_launches, LaunchOne launch) {
    CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < num_launches; ++i) launch(i);
    cudaGraph_t graph;
    CUDA_CHECK(cudaStreamEndCapture(stream_, &graph));
    cudaGraphExec_t exec;
    CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    cudaEvent_t begin, end;
    CUDA_CHECK(cudaEventCreate(&begin));
    CUDA_CHECK(cudaEventCreate(&end));
    std::vector<float> ms(5);
    CUDA_CHECK(cudaGraphLaunch(exec, stream_));
    for (float& t : ms) {
      CUDA_CHECK(cudaEventRecord(begin, stream_));
      CUDA_CHECK(cudaGraphLaunch(exec, stream_));
      CUDA_CHECK(cudaEventRecord(end, stream_));
      CUDA_CHECK(cudaEventSynchronize(end));
      CUDA_CHECK(cudaEventElapsedTime(&t, begin, end));
    }
    CUDA_CHECK(cudaEventDestroy(begin));
    CUDA_CHECK(cudaEventDestroy(end));
    CUDA_CHECK(cudaGraphExecDestroy(exec));
    CUDA_CHECK(cudaGraphDestroy(graph));
    std::sort(ms.begin(), ms.end());
    return ms[2] / 1e3 / num_launches;
  }

  static std::string Describe(const cuda::GemmConfig& c) {
    return std::to_string(c.tile_n) + "x" + std::to_string(c.tile_m) +
           (c.cluster > 1 ? "c" + std::to_string(c.cluster) : "") + (c.split_k ? "s" : "");
  }

  void Print(const Shape& shape, DType dtype, int num_rows, int num_busy,
             const cuda::GemmConfig& config, double seconds) {
    const double bytes = double{1} * num_busy * shape.n * shape.k * SizeOf(dtype);
    const double flops = 2.0 * num_rows * shape.n * shape.k;
    std::printf("  %-13s %8.1f us  %5.2f TB/s of weights (%3.0f %%)  %6.0f TFLOPS  %s\n",
                shape.name, seconds * 1e6, bytes / seconds / 1e12,
                100 * bytes / seconds / kPeakBytesPerSecond, flops / seconds / 1e12,
                Describe(config).c_str());
  }

  void Sweep(const Shape& shape, DType dtype, int num_rows, int num_busy,
             const cuda::GemmConfig& pick) {
    const int rows = (num_rows + shape.num_experts - 1) / shape.num_experts;
    std::vector<std::pair<double, cuda::GemmConfig>> times;
    for (cuda::GemmConfig config : cuda::kGemmTiles) {
      if (config.tile_m > std::max(32, 4 * rows) || std::min(rows, 128) > 2 * config.tile_m)
        continue;
      for (bool split_k : {true, false}) {
        config.split_k = split_k;
        times.emplace_back(Time(shape, dtype, num_rows, config), config);
      }
    }
    std::sort(times.begin(), times.end(),
              [](const auto& a, const auto& b) { return a.first < b.first; });
    Print(shape, dtype, num_rows, num_busy, times[0].second, times[0].first);
    for (size_t i = 0; i < times.size(); ++i) {
      const bool picked = times[i].second == pick;
      if (i > 0 && i < 6) {
        std::printf("    %s%s %.1f", picked ? "*" : "", Describe(times[i].second).c_str(),
                    times[i].first * 1e6);
      } else if (picked) {
        std::printf("  *%s %.1f", Describe(times[i].second).c_str(), times[i].first * 1e6);
      }
    }
    std::printf("\n");
  }

  void *weights_, *x_, *y_, *workspace_;
  float *scales_, *small_y_;
  double small_seconds_ = 0;
  int32_t* offsets_;
  int num_sms_ = 0;
  cudaStream_t stream_;
};

}  // namespace
}  // namespace bough

int main(int argc, char** argv) {
  using namespace bough;
  const auto has = [&](const char* flag) {
    return std::any_of(argv + 1, argv + argc, [&](char* a) { return std::strcmp(a, flag) == 0; });
  };
  Bench bench;
  for (DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    if (has("--dense")) {
      bench.Run(dtype, kDenseShapes, kFewTokens, has("--sweep"));
    } else {
      bench.Run(dtype, kShapes, kNumTokens, has("--sweep"));
    }
  }
}
