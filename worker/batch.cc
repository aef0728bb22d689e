#include "worker/batch.h"

#include <cstring>
#include <type_traits>

#include "common/check.h"

namespace bough {
namespace {

struct Header {
  int64_t step;
  int32_t shutdown, num_decode, max_blocks, max_top;
};

// Every array of a batch, in the order of its bytes.
template <typename BatchT, typename Visitor>
void VisitArrays(BatchT& b, Visitor visit) {
  visit(b.tokens), visit(b.positions), visit(b.slot_mapping), visit(b.cu_seqlens_q);
  visit(b.seqlens_kv), visit(b.block_tables), visit(b.nodes), visit(b.own_begin);
  visit(b.copy_src), visit(b.copy_dst), visit(b.logits_tokens), visit(b.samples);
  visit(b.bias_ids), visit(b.bias_values), visit(b.seen_ids), visit(b.seen_counts);
  visit(b.banned_ids);
}

class Reader {
 public:
  explicit Reader(std::span<const uint8_t> bytes) : bytes_(bytes) {}

  void Read(void* to, size_t size) {
    CHECK_LE(size, bytes_.size()) << "truncated batch";
    if (size > 0) std::memcpy(to, bytes_.data(), size);
    bytes_ = bytes_.subspan(size);
  }
  size_t num_left() const { return bytes_.size(); }

 private:
  std::span<const uint8_t> bytes_;
};

void Write(const void* from, size_t size, std::vector<uint8_t>* bytes) {
  const auto* begin = static_cast<const uint8_t*>(from);
  bytes->insert(bytes->end(), begin, begin + size);
}

}  // namespace

void Pack(const Batch& batch, std::vector<uint8_t>* bytes) {
  bytes->clear();
  const Header header{batch.step, batch.shutdown, batch.num_decode, batch.max_blocks,
                      batch.max_top};
  Write(&header, sizeof(header), bytes);
  VisitArrays(batch, [bytes](const auto& array) {
    using T = typename std::decay_t<decltype(array)>::value_type;
    static_assert(std::is_trivially_copyable_v<T>, "arrays travel as bytes");
    const uint64_t size = array.size();
    Write(&size, sizeof(size), bytes);
    Write(array.data(), size * sizeof(T), bytes);
  });
}

void Unpack(std::span<const uint8_t> bytes, Batch* batch) {
  Reader reader(bytes);
  Header header;
  reader.Read(&header, sizeof(header));
  batch->step = header.step;
  batch->shutdown = header.shutdown != 0;
  batch->num_decode = header.num_decode;
  batch->max_blocks = header.max_blocks;
  batch->max_top = header.max_top;
  VisitArrays(*batch, [&reader](auto& array) {
    using T = typename std::decay_t<decltype(array)>::value_type;
    uint64_t size;
    reader.Read(&size, sizeof(size));
    CHECK_LE(size, reader.num_left() / sizeof(T)) << "truncated batch";
    array.resize(size);
    reader.Read(array.data(), size * sizeof(T));
  });
  CHECK_EQ(reader.num_left(), 0u) << "bytes after the batch's end";
}

}  // namespace bough
