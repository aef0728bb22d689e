// Times the CUDA attention ops at Mixtral's shape, 32 query and 8 KV heads of 128:
//
//   bench-kernels-attention [decode|bifurcated|prefill]
//
// Each case is a CUDA graph of launches that take turns over the caches of several layers, larger in
// sum than the L2 cache, so keys come from memory as they do in a model. Prints the median time of a
// launch, the unique KV bytes it has to read per second and their share of this GPU's read ceiling,
// 4.6 TB/s, and the FLOPs that its (query, key) pairs need per second.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cuda/cuda_check.h"

namespace bough {
namespace {

constexpr int kNumHeads = 32, kNumKvHeads = 8, kHeadDim = 128, kBlockSize = 64;
constexpr int kQStride = (kNumHeads + 2 * kNumKvHeads) * kHeadDim;
constexpr double kReadBytesPerSecond = 4.6e12;
constexpr int64_t kRotatedBytes = int64_t{1} << 30;

// Random elements of moderate size: bf16 in +-[0.5, 1), e4m3 in +-[2^-3, 2^-1).
std::vector<uint16_t> SomeElements(bool e4m3) {
  std::mt19937 random(1);
  std::vector<uint16_t> elements((8 << 20) -
                                 1);  // odd: what repeats them is not periodic in blocks
  for (uint16_t& x : elements) {
    const auto bits = static_cast<uint16_t>(random());
    x = e4m3 ? 0x2020 | (bits & 0x8f8f) : 0x3f00 | (bits & 0x807f);
  }
  return elements;
}

class DeviceMemory {
 public:
  explicit DeviceMemory(int64_t num_bytes) { CUDA_CHECK(cudaMalloc(&data_, num_bytes)); }
  explicit DeviceMemory(const std::vector<int32_t>& values) : DeviceMemory(values.size() * 4) {
    CUDA_CHECK(cudaMemcpy(data_, values.data(), values.size() * 4, cudaMemcpyHostToDevice));
  }
  ~DeviceMemory() { CUDA_CHECK(cudaFree(data_)); }
  DeviceMemory(const DeviceMemory&) = delete;

  char* data() const { return static_cast<char*>(data_); }
  int32_t* ints() const { return static_cast<int32_t*>(data_); }
  void Fill(int64_t num_bytes, bool e4m3) const {
    const std::vector<uint16_t> elements = SomeElements(e4m3);
    const int64_t step = static_cast<int64_t>(elements.size()) * 2;
    CUDA_CHECK(cudaMemcpy(data(), elements.data(), std::min(step, num_bytes), cudaMemcpyDefault));
    for (int64_t at = step; at < num_bytes; at += step) {
      CUDA_CHECK(cudaMemcpyAsync(data() + at, data(), std::min(step, num_bytes - at),
                                 cudaMemcpyDeviceToDevice));
    }
  }

 private:
  void* data_ = nullptr;
};

// Median seconds of launch(i), i counting launches.
double Time(const std::function<void(int, cudaStream_t)>& launch, int num_launches) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cudaEvent_t begin, end;
  CUDA_CHECK(cudaStreamCreate(&stream));
  CUDA_CHECK(cudaEventCreate(&begin));
  CUDA_CHECK(cudaEventCreate(&end));
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < num_launches; ++i) launch(i, stream);
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  std::vector<double> seconds;
  for (int round = 0; round < 8; ++round) {
    CUDA_CHECK(cudaEventRecord(begin, stream));
    CUDA_CHECK(cudaGraphLaunch(exec, stream));
    CUDA_CHECK(cudaEventRecord(end, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
    float ms = 0;
    CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (round > 0) seconds.push_back(ms / 1e3 / num_launches);  // the first warms up
  }
  CUDA_CHECK(cudaGraphExecDestroy(exec));
  CUDA_CHECK(cudaGraphDestroy(graph));
  CUDA_CHECK(cudaEventDestroy(begin));
  CUDA_CHECK(cudaEventDestroy(end));
  CUDA_CHECK(cudaStreamDestroy(stream));
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  return seconds[seconds.size() / 2];
}

struct Case {
  const char* name;
  DType kv_dtype;
  int num_seqs, num_q, shared_len, own_len;
};

void Run(const Case& c) {
  const int len = c.shared_len + c.own_len, num_tokens = c.num_seqs * c.num_q;
  const int max_blocks = (len + kBlockSize - 1) / kBlockSize;
  const int shared_blocks = c.shared_len / kBlockSize, own_blocks = max_blocks - shared_blocks;
  const int num_blocks = shared_blocks + c.num_seqs * own_blocks;
  const int64_t key_bytes = int64_t{2} * kNumKvHeads * kHeadDim * SizeOf(c.kv_dtype);
  const int64_t layer_bytes = key_bytes * kBlockSize * num_blocks;
  const int num_layers = static_cast<int>(std::clamp<int64_t>(kRotatedBytes / layer_bytes, 2, 64));
  const int num_launches = num_layers < 8 ? 8 : num_layers;

  std::vector<int32_t> block_tables, cu_seqlens_q = {0}, seqlens_kv, groups = {0, c.num_seqs};
  for (int s = 0; s < c.num_seqs; ++s) {
    for (int b = 0; b < max_blocks; ++b) {
      const int own = shared_blocks + (b - shared_blocks) * c.num_seqs + s;  // scattered
      block_tables.push_back(b < shared_blocks ? b : own);
    }
    cu_seqlens_q.push_back((s + 1) * c.num_q);
    seqlens_kv.push_back(len);
  }
  const DeviceMemory tables(block_tables), cu(cu_seqlens_q), lens(seqlens_kv), starts(groups);
  const DeviceMemory prefix(std::vector<int32_t>{c.shared_len});
  const DeviceMemory q(int64_t{num_tokens} * kQStride * 2),
      o(int64_t{num_tokens} * kNumHeads * 256);
  const DeviceMemory kv(layer_bytes * num_layers);
  const int64_t workspace_bytes = cuda::AttentionWorkspaceBytes(c.num_seqs, kNumHeads, kHeadDim);
  const DeviceMemory workspace(workspace_bytes);
  q.Fill(int64_t{num_tokens} * kQStride * 2, false);
  kv.Fill(layer_bytes * num_layers, c.kv_dtype == DType::kF8E4M3);
  CUDA_CHECK(cudaMemset(workspace.data(), 0, workspace_bytes));

  const auto set = [&](auto& p, int launch) {
    p.q = q.data();
    p.k_cache = kv.data() + launch % num_layers * layer_bytes;
    p.v_cache = kv.data() + launch % num_layers * layer_bytes + layer_bytes / 2;
    p.block_tables = tables.ints();
    p.seqlens_kv = lens.ints();
    p.o = o.data();
    p.workspace = workspace.data();
    p.num_seqs = c.num_seqs;
    p.num_heads = kNumHeads;
    p.num_kv_heads = kNumKvHeads;
    p.head_dim = kHeadDim;
    p.block_size = kBlockSize;
    p.max_blocks = max_blocks;
    p.q_stride = kQStride;
    p.sm_scale = 0.088f;
    p.dtype = DType::kBF16;
    p.kv_dtype = c.kv_dtype;
  };
  const double seconds = Time(
      [&](int i, cudaStream_t stream) {
        if (c.shared_len > 0) {
          BifurcatedAttentionParams p;
          set(p, i);
          p.group_start = starts.ints();
          p.prefix_len = prefix.ints();
          p.num_groups = 1;
          cuda::BifurcatedAttention(p, stream);
        } else {
          PagedAttentionParams p;
          set(p, i);
          p.cu_seqlens_q = cu.ints();
          p.max_seqlen_q = c.num_q;
          cuda::PagedAttention(p, stream);
        }
      },
      num_launches);

  const double bytes = 1.0 * key_bytes * (c.shared_len + 1.0 * c.num_seqs * c.own_len);
  const double pairs_per_seq = c.num_q == 1 ? len : c.num_q * (len - (c.num_q - 1) / 2.0);
  const double flops = 4.0 * kNumHeads * kHeadDim * c.num_seqs * pairs_per_seq;
  std::printf(
      "%-10s %-7s b=%-3d q=%-5d shared=%-5d own=%-5d %9.1f us %6.2f TB/s %4.0f %% %6.1f TF\n",
      c.name, Name(c.kv_dtype), c.num_seqs, c.num_q, c.shared_len, c.own_len, seconds * 1e6,
      bytes / seconds / 1e12, 100 * bytes / seconds / kReadBytesPerSecond, flops / seconds / 1e12);
  std::fflush(stdout);
}

void RunAll(const char* only) {
  std::vector<Case> cases;
  for (DType kv : {DType::kBF16, DType::kF8E4M3}) {
    for (int len : {1024, 8192}) {
      for (int b : {1, 8, 64, 256}) cases.push_back({"decode", kv, b, 1, 0, len});
    }
    cases.push_back({"decode", kv, 512, 1, 0, 1024});
    for (int b : {4, 16, 64, 256}) cases.push_back({"bifurcated", kv, b, 1, 8192, 64});
    for (int q : {1024, 4096, 16384}) cases.push_back({"prefill", kv, 1, q, 0, q});
    cases.push_back({"prefill", kv, 1, 1024, 0, 16384});
  }
  for (const Case& c : cases) {
    if (only == nullptr || std::strcmp(only, c.name) == 0) Run(c);
  }
}

}  // namespace
}  // namespace bough

int main(int argc, char** argv) {
  bough::RunAll(argc > 1 ? argv[1] : nullptr);
  return 0;
}
