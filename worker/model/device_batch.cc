#include "worker/model/device_batch.h"

#include <algorithm>

#include "common/check.h"

namespace bough {
namespace {

// Room for what only some requests ask for, in a padded batch; more than that runs unpadded.
constexpr int64_t kMaxBias = 16 << 10;
constexpr int64_t kMaxSeen = 256 << 10;
constexpr int64_t kMaxBanned = 4 << 10;

// Places arrays one behind the other, at the same offsets on host and device. With host == nullptr
// it only counts.
class Layout {
 public:
  Layout(void* host, void* device)
      : host_(static_cast<char*>(host)), device_(static_cast<char*>(device)) {}

  // Room for `capacity` elements; `values` are copied to its front and the rest is `padding`.
  template <typename T>
  const T* Add(const std::vector<T>& values, int64_t capacity, const T& padding) {
    const int64_t offset = (end_ + kAlignment - 1) / kAlignment * kAlignment;
    end_ = offset + capacity * static_cast<int64_t>(sizeof(T));
    if (host_ != nullptr) {
      CHECK_LE(static_cast<int64_t>(values.size()), capacity);
      T* const out = reinterpret_cast<T*>(host_ + offset);
      std::fill(std::copy(values.begin(), values.end(), out), out + capacity, padding);
    }
    return reinterpret_cast<const T*>(device_ + offset);
  }
  template <typename T>
  const T* Add(const std::vector<T>& values) {
    return Add(values, static_cast<int64_t>(values.size()), T{});
  }
  // Room whose rest is left as it is.
  template <typename T>
  const T* AddFlat(const std::vector<T>& values, int64_t capacity) {
    const T* const at = Add(values);
    if (!values.empty()) used_end_ = end_;
    end_ += (capacity - static_cast<int64_t>(values.size())) * static_cast<int64_t>(sizeof(T));
    return at;
  }
  void MarkUsed() { used_end_ = end_; }

  int64_t num_bytes() const { return end_; }
  int64_t num_used_bytes() const { return used_end_; }

 private:
  static constexpr int64_t kAlignment = 16;
  char* const host_;
  char* const device_;
  int64_t end_ = 0;
  int64_t used_end_ = 0;
};

void SetSizes(const Batch& batch, DeviceBatch* out) {
  out->num_tokens = batch.num_tokens();
  out->num_seqs = batch.num_seqs();
  out->num_decode = batch.num_decode;
  out->num_nodes = static_cast<int>(batch.nodes.size());
  out->max_blocks = batch.max_blocks;
  for (int s = 0; s < batch.num_seqs(); ++s) {
    out->max_seqlen_q =
        std::max(out->max_seqlen_q, batch.cu_seqlens_q[s + 1] - batch.cu_seqlens_q[s]);
  }
  out->num_logits_rows = static_cast<int>(batch.logits_tokens.size());
  out->num_samples = static_cast<int>(batch.samples.size());
  out->max_top = batch.max_top;
  out->num_copies = static_cast<int>(batch.copy_src.size());
  out->any_shared = !batch.nodes.empty();
}

DeviceBatch View(const Batch& b) {
  DeviceBatch out;
  SetSizes(b, &out);
  out.tokens = b.tokens.data();
  out.positions = b.positions.data();
  out.slot_mapping = b.slot_mapping.data();
  out.cu_seqlens_q = b.cu_seqlens_q.data();
  out.seqlens_kv = b.seqlens_kv.data();
  out.block_tables = b.block_tables.data();
  out.nodes = b.nodes.data();
  out.own_begin = b.own_begin.data();
  out.logits_tokens = b.logits_tokens.data();
  out.copy_src = b.copy_src.data();
  out.copy_dst = b.copy_dst.data();
  out.samples = b.samples.data();
  out.bias_ids = b.bias_ids.data();
  out.bias_values = b.bias_values.data();
  out.seen_ids = b.seen_ids.data();
  out.seen_counts = b.seen_counts.data();
  out.banned_ids = b.banned_ids.data();
  return out;
}

DeviceBatch Place(const Batch& b, Layout* layout) {
  DeviceBatch out;
  SetSizes(b, &out);
  out.tokens = layout->Add(b.tokens);
  out.positions = layout->Add(b.positions);
  out.slot_mapping = layout->Add(b.slot_mapping);
  out.cu_seqlens_q = layout->Add(b.cu_seqlens_q);
  out.seqlens_kv = layout->Add(b.seqlens_kv);
  out.block_tables = layout->Add(b.block_tables);
  out.nodes = layout->Add(b.nodes);
  out.own_begin = layout->Add(b.own_begin);
  out.logits_tokens = layout->Add(b.logits_tokens);
  out.copy_src = layout->Add(b.copy_src);
  out.copy_dst = layout->Add(b.copy_dst);
  out.samples = layout->Add(b.samples);
  out.bias_ids = layout->Add(b.bias_ids);
  out.bias_values = layout->Add(b.bias_values);
  out.seen_ids = layout->Add(b.seen_ids);
  out.seen_counts = layout->Add(b.seen_counts);
  out.banned_ids = layout->Add(b.banned_ids);
  return out;
}

// Row r's first entry of [rows, columns], continued for `num_rows` rows.
std::vector<int32_t> Ascending(const std::vector<int32_t>& values, int64_t size) {
  std::vector<int32_t> out = values;
  while (static_cast<int64_t>(out.size()) < size) {
    out.push_back(out.empty() ? 0 : out.back() + 1);
  }
  return out;
}

// The block tables with rows of `max_blocks` entries.
std::vector<int32_t> WidenTables(const Batch& b, int max_blocks) {
  std::vector<int32_t> out(int64_t{b.num_seqs()} * max_blocks, -1);
  for (int s = 0; s < b.num_seqs(); ++s) {
    std::copy_n(b.block_tables.begin() + int64_t{s} * b.max_blocks, b.max_blocks,
                out.begin() + int64_t{s} * max_blocks);
  }
  return out;
}

DeviceBatch PlacePadded(const Batch& b, int num_rows, int max_blocks, Layout* layout) {
  DeviceBatch out;
  SetSizes(b, &out);
  out.num_tokens = out.num_seqs = out.num_decode = num_rows;
  out.num_nodes = num_rows;  // no forest of so many rows has more
  out.num_logits_rows = out.num_samples = num_rows;
  out.max_blocks = max_blocks;
  out.max_seqlen_q = 1;
  out.max_top = b.max_top;
  out.num_copies = 0;
  SamplingRow no_sample;
  no_sample.temperature = 0;
  out.tokens = layout->Add<int32_t>(b.tokens, num_rows, 0);
  out.positions = layout->Add<int32_t>(b.positions, num_rows, 0);
  out.slot_mapping = layout->Add<int32_t>(b.slot_mapping, num_rows, -1);
  out.cu_seqlens_q = layout->Add(Ascending(b.cu_seqlens_q, num_rows + 1));
  out.seqlens_kv = layout->Add<int32_t>(b.seqlens_kv, num_rows, 0);
  out.nodes = layout->Add<SharedNode>(b.nodes, num_rows, {num_rows, num_rows, 0, 0});
  out.own_begin = layout->Add<int32_t>(b.own_begin, num_rows, 0);
  out.logits_tokens = layout->Add(Ascending(b.logits_tokens, num_rows));
  out.samples = layout->Add(b.samples, num_rows, no_sample);
  out.block_tables =
      layout->Add<int32_t>(WidenTables(b, max_blocks), int64_t{num_rows} * max_blocks, -1);
  layout->MarkUsed();
  out.bias_ids = layout->AddFlat(b.bias_ids, kMaxBias);
  out.bias_values = layout->AddFlat(b.bias_values, kMaxBias);
  out.banned_ids = layout->AddFlat(b.banned_ids, kMaxBanned);
  out.seen_ids = layout->AddFlat(b.seen_ids, kMaxSeen);
  out.seen_counts = layout->AddFlat(b.seen_counts, kMaxSeen);
  return out;
}

}  // namespace

BatchMemory::~BatchMemory() {
  for (void* host : on_host_) {
    if (host != nullptr) device_->FreeHost(host);
  }
}

void BatchMemory::Reserve(int64_t num_bytes) {
  if (num_bytes <= capacity_) return;
  device_->Synchronize();
  capacity_ = std::max(num_bytes, 2 * capacity_);
  on_device_ = DeviceBuffer();
  on_device_ = DeviceBuffer::Scratch(device_, capacity_ / 4 + 1, DType::kI32);
  for (void*& host : on_host_) {
    if (host != nullptr) device_->FreeHost(host);
    host = device_->AllocateHost(capacity_);
  }
}

DeviceBatch BatchMemory::Upload(const Batch& batch) {
  if (!device_->is_cuda()) return View(batch);
  Layout size(nullptr, nullptr);
  Place(batch, &size);
  Reserve(size.num_bytes());
  void* const host = on_host_[next_++ % 2];
  Layout layout(host, on_device_.data());
  const DeviceBatch out = Place(batch, &layout);
  device_->CopyToDevice(on_device_.data(), host, layout.num_bytes());
  return out;
}

PaddedBatchMemory::PaddedBatchMemory(Device* device, int max_num_rows, int max_blocks)
    : device_(device), max_num_rows_(max_num_rows), max_blocks_(max_blocks) {
  Layout size(nullptr, nullptr);
  PlacePadded(Batch(), max_num_rows, max_blocks, &size);
  on_device_ = DeviceBuffer::Scratch(device_, size.num_bytes() / 4 + 1, DType::kI32);
  for (void*& host : on_host_) host = device_->AllocateHost(size.num_bytes());
}

PaddedBatchMemory::~PaddedBatchMemory() {
  for (void* host : on_host_) device_->FreeHost(host);
}

bool PaddedBatchMemory::Fits(const Batch& b) const {
  const auto at_most = [](const auto& values, int64_t size) {
    return static_cast<int64_t>(values.size()) <= size;
  };
  return b.num_seqs() == b.num_decode && b.num_seqs() <= max_num_rows_ && b.copy_src.empty() &&
         b.max_blocks <= max_blocks_ && b.nodes.size() <= b.tokens.size() &&
         b.logits_tokens.size() == b.tokens.size() && b.samples.size() == b.tokens.size() &&
         at_most(b.bias_ids, kMaxBias) && at_most(b.banned_ids, kMaxBanned) &&
         at_most(b.seen_ids, kMaxSeen);
}

DeviceBatch PaddedBatchMemory::Upload(const Batch& batch, int num_rows) {
  void* const host = on_host_[next_++ % 2];
  Layout layout(host, on_device_.data());
  const DeviceBatch out = PlacePadded(batch, num_rows, max_blocks_, &layout);
  device_->CopyToDevice(on_device_.data(), host, layout.num_used_bytes());
  return out;
}

}  // namespace bough
