#include "bench/attention_run.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <set>
#include <utility>

#include "bench/attention_one_level.h"
#include "common/block_hash.h"
#include "common/check.h"
#include "kernels/cuda/cuda_check.h"

namespace bough {
namespace {

constexpr int64_t kRotatedBytes = int64_t{1} << 30;
constexpr int kMinLaunches = 8, kMaxLayers = 256, kReplays = 7, kPlanLaunches = 20;

std::vector<uint8_t> NormalElements(DType dtype) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> draws(1 << 16);
  for (float& draw : draws) draw = normal(random);
  // An odd number of pairs of bytes: what repeats them is not periodic in blocks.
  std::vector<uint8_t> bytes(2 * ((8 << 20) - 1));
  for (size_t i = 0; i < bytes.size(); i += 2) {
    const uint32_t bits = random();
    const float a = draws[bits & 0xffff], b = draws[bits >> 16];
    if (dtype == DType::kF8E4M3) {
      bytes[i] = FloatToE4M3(a);
      bytes[i + 1] = FloatToE4M3(b);
    } else {
      const uint16_t element = FloatToBF16(a);
      bytes[i] = static_cast<uint8_t>(element);
      bytes[i + 1] = static_cast<uint8_t>(element >> 8);
    }
  }
  return bytes;
}

// Median us of one of `num_launches` launches in a graph.
double MedianUs(int num_launches, const std::function<void(int, cudaStream_t)>& launch) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cudaEvent_t begin, end;
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CUDA_CHECK(cudaEventCreate(&begin));
  CUDA_CHECK(cudaEventCreate(&end));
  CUDA_CHECK(cudaDeviceSynchronize());
  launch(0, stream);  // kernels are loaded at their first launch
  CUDA_CHECK(cudaStreamSynchronize(stream));
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < num_launches; ++i) launch(i, stream);
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  std::vector<double> us;
  for (int round = 0; round <= kReplays; ++round) {
    CUDA_CHECK(cudaEventRecord(begin, stream));
    CUDA_CHECK(cudaGraphLaunch(exec, stream));
    CUDA_CHECK(cudaEventRecord(end, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
    float ms = 0;
    CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (round > 0) us.push_back(ms * 1e3 / num_launches);  // the first warms up
  }
  CUDA_CHECK(cudaGraphExecDestroy(exec));
  CUDA_CHECK(cudaGraphDestroy(graph));
  CUDA_CHECK(cudaEventDestroy(begin));
  CUDA_CHECK(cudaEventDestroy(end));
  CUDA_CHECK(cudaStreamDestroy(stream));
  std::sort(us.begin(), us.end());
  return us[us.size() / 2];
}

template <typename T>
int64_t BytesOf(const std::vector<T>& values) {
  return static_cast<int64_t>(values.size() * sizeof(T));
}

// A copy of the values on the GPU.
template <typename T>
class GpuArray : public GpuMemory {
 public:
  explicit GpuArray(const std::vector<T>& values) : GpuMemory(BytesOf(values)) {
    CUDA_CHECK(cudaMemcpy(data(), values.data(), num_bytes(), cudaMemcpyHostToDevice));
  }
  const T* get() const { return reinterpret_cast<const T*>(data()); }
};

std::vector<int32_t> Multiples(int step, int count) {
  std::vector<int32_t> out(count);
  for (int i = 0; i < count; ++i) out[i] = i * step;
  return out;
}

int NumBlocks(int num_keys) { return (num_keys + kBlockSize - 1) / kBlockSize; }

// Every block of a node or of a sequence at a random place. Entries past a sequence's end are none.
std::vector<int32_t> BlockTables(const AttentionCase& c, int max_blocks) {
  std::vector<int32_t> tables(int64_t{c.num_seqs()} * max_blocks, -1);
  int num_blocks = 0;
  for (const SharedNode& node : c.nodes) {
    for (int b = node.key_begin / kBlockSize; b < node.key_end / kBlockSize; ++b, ++num_blocks) {
      for (int s = node.seq_begin; s < node.seq_end; ++s)
        tables[int64_t{s} * max_blocks + b] = num_blocks;
    }
  }
  for (int s = 0; s < c.num_seqs(); ++s) {
    for (int b = c.own_begin[s] / kBlockSize; b < NumBlocks(c.seqlens[s]); ++b) {
      tables[int64_t{s} * max_blocks + b] = num_blocks++;
    }
  }
  std::vector<int32_t> places = Multiples(1, num_blocks);
  std::shuffle(places.begin(), places.end(), std::mt19937(2));
  for (int32_t& block : tables) {
    if (block >= 0) block = places[block];
  }
  return tables;
}

}  // namespace

GpuMemory::GpuMemory(int64_t num_bytes) : num_bytes_(num_bytes) {
  CUDA_CHECK(cudaMalloc(&data_, std::max<int64_t>(num_bytes, 1)));
}

GpuMemory::~GpuMemory() { CUDA_CHECK(cudaFree(data_)); }

void GpuMemory::FillNormal(DType dtype) const {
  const std::vector<uint8_t> elements = NormalElements(dtype);
  const int64_t step = BytesOf(elements);
  CUDA_CHECK(cudaMemcpy(data(), elements.data(), std::min(step, num_bytes_), cudaMemcpyDefault));
  for (int64_t at = step; at < num_bytes_; at += step) {
    CUDA_CHECK(cudaMemcpyAsync(data() + at, data(), std::min(step, num_bytes_ - at),
                               cudaMemcpyDeviceToDevice));
  }
  CUDA_CHECK(cudaDeviceSynchronize());
}

struct AttentionRun::Arrays {
  Arrays(const AttentionCase& c, const std::vector<int32_t>& tables, int64_t workspace_bytes)
      : block_tables(tables),
        cu_seqlens_q(Multiples(c.num_q, c.num_seqs() + 1)),
        seqlens_kv(c.seqlens),
        own_begin(c.own_begin),
        nodes(c.nodes),
        q(int64_t{c.num_tokens()} * QStride(c) * 2),
        o(int64_t{c.num_tokens()} * c.num_heads * c.head_dim * 2),
        workspace(workspace_bytes) {
    q.FillNormal(DType::kBF16);
    CUDA_CHECK(cudaMemset(workspace.data(), 0, workspace_bytes));
    CUDA_CHECK(cudaDeviceSynchronize());
  }
  // As in a model, where q, k and v of a token stand together.
  static int QStride(const AttentionCase& c) {
    return (c.num_heads + 2 * c.num_kv_heads) * c.head_dim;
  }

  const GpuArray<int32_t> block_tables, cu_seqlens_q, seqlens_kv, own_begin;
  const GpuArray<SharedNode> nodes;
  const GpuMemory q, o, workspace;
};

AttentionRun::AttentionRun(const AttentionCase& c, const GpuMemory& kv) : case_(c), kv_(kv) {
  max_blocks_ = NumBlocks(*std::max_element(c.seqlens.begin(), c.seqlens.end()));
  block_tables_ = BlockTables(c, max_blocks_);
  const int num_blocks = *std::max_element(block_tables_.begin(), block_tables_.end()) + 1;
  layer_bytes_ = int64_t{num_blocks} * kBlockSize * 2 * c.num_kv_heads * c.head_dim *
                 static_cast<int64_t>(SizeOf(c.kv_dtype()));
  CHECK_LE(2 * layer_bytes_, kv.num_bytes());
  num_layers_ = static_cast<int>(std::clamp<int64_t>(kRotatedBytes / layer_bytes_, 2, kMaxLayers));
  arrays_ = std::make_unique<Arrays>(
      c, block_tables_,
      cuda::AttentionWorkspaceBytes(c.num_tokens(), c.num_seqs(), c.num_heads, c.num_kv_heads,
                                    c.head_dim));
}

AttentionRun::~AttentionRun() = default;

PagedAttentionParams AttentionRun::Params(int layer, bool with_nodes) const {
  PagedAttentionParams p;
  p.q = arrays_->q.data();
  p.k_cache = kv_.data() + layer * layer_bytes_;
  p.v_cache = kv_.data() + layer * layer_bytes_ + layer_bytes_ / 2;
  p.block_tables = arrays_->block_tables.get();
  p.cu_seqlens_q = arrays_->cu_seqlens_q.get();
  p.seqlens_kv = arrays_->seqlens_kv.get();
  p.o = arrays_->o.data();
  p.workspace = arrays_->workspace.data();
  p.max_seqlen_q = case_.num_q;
  p.num_seqs = case_.num_seqs();
  if (with_nodes && !case_.nodes.empty()) {
    p.nodes = arrays_->nodes.get();
    p.own_begin = arrays_->own_begin.get();
    p.num_nodes = static_cast<int>(case_.nodes.size());
  }
  p.num_heads = case_.num_heads;
  p.num_kv_heads = case_.num_kv_heads;
  p.head_dim = case_.head_dim;
  p.block_size = kBlockSize;
  p.max_blocks = max_blocks_;
  p.q_stride = Arrays::QStride(case_);
  p.sm_scale = 1 / std::sqrt(static_cast<float>(case_.head_dim));
  p.dtype = DType::kBF16;
  p.kv_dtype = case_.kv_dtype();
  p.fp8_products = case_.fp8_products();
  return p;
}

void AttentionRun::Attend(const PagedAttentionParams& p, Stream stream) const {
  const bool one_level = case_.precision == AttentionPrecision::kFp8OneLevel;
  (one_level ? OneLevelAttention : cuda::PagedAttention)(p, stream);
}

double AttentionRun::LayerUs(bool with_nodes) {
  cuda::PlanAttention(Params(0, with_nodes), nullptr);
  CUDA_CHECK(cudaDeviceSynchronize());
  return MedianUs(std::max(num_layers_, kMinLaunches), [&](int i, cudaStream_t stream) {
    Attend(Params(i % num_layers_, with_nodes), stream);
  });
}

double AttentionRun::PlanUs() {
  return MedianUs(kPlanLaunches,
                  [&](int, cudaStream_t stream) { cuda::PlanAttention(Params(0, true), stream); });
}

// A sequence's blocks of one KV head.
CachedKeys AttentionRun::ReadKeys(int seq, int kv_head) const {
  const PagedAttentionParams p = Params(0, true);
  const int num_blocks = NumBlocks(case_.seqlens[seq]);
  const int64_t block_bytes =
      int64_t{kBlockSize} * case_.head_dim * static_cast<int64_t>(SizeOf(case_.kv_dtype()));
  CachedKeys keys;
  for (auto [to, cache] : {std::pair(&keys.k_blocks, p.k_cache), {&keys.v_blocks, p.v_cache}}) {
    to->resize(num_blocks * block_bytes);
    for (int b = 0; b < num_blocks; ++b) {
      const int64_t block = block_tables_[int64_t{seq} * max_blocks_ + b];
      const int64_t at = (block * case_.num_kv_heads + kv_head) * block_bytes;
      CUDA_CHECK(cudaMemcpyAsync(to->data() + b * block_bytes, static_cast<const char*>(cache) + at,
                                 block_bytes, cudaMemcpyDeviceToHost));
    }
  }
  CUDA_CHECK(cudaDeviceSynchronize());
  return keys;
}

// |o - reference|^2 / |reference|^2 of one token's head.
double AttentionRun::SquaredError(const CachedKeys& keys, int64_t token, int num_keys,
                                  int head) const {
  const PagedAttentionParams p = Params(0, true);
  const int dim = case_.head_dim;
  std::vector<uint16_t> q(dim), o(dim);
  CUDA_CHECK(cudaMemcpy(q.data(),
                        static_cast<const uint16_t*>(p.q) + token * p.q_stride + head * dim,
                        BytesOf(q), cudaMemcpyDeviceToHost));
  CUDA_CHECK(cudaMemcpy(o.data(),
                        static_cast<const uint16_t*>(p.o) + (token * p.num_heads + head) * dim,
                        BytesOf(o), cudaMemcpyDeviceToHost));
  const std::vector<double> want = ExactAttention(case_, keys, q.data(), num_keys, p.sm_scale);
  double error = 0, norm = 0;
  for (int d = 0; d < dim; ++d) {
    const double difference = BF16ToFloat(o[d]) - want[d];
    error += difference * difference;
    norm += want[d] * want[d];
  }
  return error / norm;
}

double AttentionRun::RelativeError() {
  const PagedAttentionParams p = Params(0, true);
  CUDA_CHECK(cudaMemset(p.o, 0xff, arrays_->o.num_bytes()));  // NaN: all rows must be written
  cuda::PlanAttention(p, nullptr);
  Attend(p, nullptr);
  CUDA_CHECK(cudaDeviceSynchronize());

  const int last_seq = case_.num_seqs() - 1, last_head = case_.num_kv_heads - 1;
  const int group = case_.num_heads / case_.num_kv_heads;
  const std::set<int> queries = {0, case_.num_q / 2, case_.num_q - 1};
  const std::set<std::pair<int, int>> samples = {
      {0, 0}, {last_seq / 2, last_head / 2}, {last_seq, last_head}};
  double sum = 0;
  for (const auto& [seq, kv_head] : samples) {
    const CachedKeys keys = ReadKeys(seq, kv_head);
    for (int q : queries) {
      const int num_keys = case_.seqlens[seq] - case_.num_q + q + 1;
      for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        sum += SquaredError(keys, int64_t{seq} * case_.num_q + q, num_keys, head);
      }
    }
  }
  return std::sqrt(sum / static_cast<double>(samples.size() * queries.size() * group));
}

}  // namespace bough
