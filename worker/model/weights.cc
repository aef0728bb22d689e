#include "worker/model/weights.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/status_macros.h"
#include "worker/model/read_ahead.h"
#include "worker/model/weight_plan.h"

namespace bough {
namespace {

constexpr int64_t kProgressBytes = int64_t{64} << 20;
// What travels at once: long enough for the bus, short enough for many readers.
constexpr int64_t kBandBytes = int64_t{16} << 20;

// Elements that travel at once: rows of host memory or of FillUniform, and where they go.
struct Band {
  HostRows host;           // src is nullptr: filled on the device
  FillUniformParams fill;  // its shape and dtype are the band's in either case
  void* out = nullptr;
  // When they are quantised on the way: the rows' scales, and which columns are this rank's.
  float* scale = nullptr;
  Range cols;

  int64_t num_bytes() const { return fill.num_rows * fill.num_cols * SizeOf(fill.dtype); }
  int64_t out_bytes() const {
    return scale == nullptr ? num_bytes() : fill.num_rows * (cols.size() + sizeof(float));
  }
};

// The dtype in which a slice reaches the device. The CPU's Quantize takes f32.
DType TravelDType(const PlannedWeight& planned, const StoredTensor& stored, bool is_cuda) {
  if (planned.dtype != DType::kF8E4M3 || stored.dtype == DType::kF8E4M3) return planned.dtype;
  return is_cuda && stored.dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
}

// Cuts a slice into bands; row 0 of it goes to `out`, its scale to `scale`.
void AddBands(const TensorSlice& slice, DType dtype, bool quantize, uint8_t* out, float* scale,
              std::vector<Band>* bands) {
  const StoredTensor& stored = slice.stored;
  const int64_t num_cols = slice.shape.size() > 1 ? slice.shape[1] : 1;
  const Range cols = quantize ? Range{0, num_cols} : slice.cols;
  const int64_t row_bytes = cols.size() * static_cast<int64_t>(SizeOf(dtype));
  const int64_t band_rows = std::max<int64_t>(1, kBandBytes / row_bytes);
  for (int64_t row = slice.rows.begin; row < slice.rows.end; row += band_rows) {
    const int64_t num_rows = std::min(band_rows, slice.rows.end - row);
    Band band;
    band.fill = {.key = stored.key,
                 .mean = stored.mean,
                 .half_width = stored.half_width,
                 .row_begin = row,
                 .num_rows = num_rows,
                 .col_begin = cols.begin,
                 .num_cols = cols.size(),
                 .tensor_cols = num_cols,
                 .dtype = dtype};
    if (stored.bytes != nullptr) {
      const int64_t stored_bytes = static_cast<int64_t>(SizeOf(stored.dtype));
      band.host = {.src = stored.bytes + (row * num_cols + cols.begin) * stored_bytes,
                   .stride_bytes = num_cols * stored_bytes,
                   .num_rows = num_rows,
                   .num_cols = cols.size(),
                   .src_dtype = stored.dtype,
                   .dtype = dtype};
    }
    band.out = out;
    if (quantize) {
      band.scale = scale;
      band.cols = slice.cols;
      scale += num_rows;
    }
    out += num_rows * (quantize ? slice.cols.size() : row_bytes);
    bands->push_back(band);
  }
}

// f32 numbers of the host.
Band NumbersBand(const std::vector<float>& numbers, void* out) {
  Band band;
  const int64_t count = static_cast<int64_t>(numbers.size());
  band.fill = {.num_rows = 1, .num_cols = count};
  band.fill.dtype = DType::kF32;
  band.host = {.src = reinterpret_cast<const uint8_t*>(numbers.data()),
               .stride_bytes = count * static_cast<int64_t>(sizeof(float)),
               .num_rows = 1,
               .num_cols = count};
  band.out = out;
  return band;
}

// One scale a row of the slice.
std::vector<float> RowScales(const TensorSlice& slice) {
  const std::vector<float>& stored = slice.stored.scale;
  if (stored.size() == 1) return std::vector<float>(slice.rows.size(), stored[0]);
  return {stored.begin() + slice.rows.begin, stored.begin() + slice.rows.end};
}

// Allocates a plan's buffers, then carries everything into them.
class Loader {
 public:
  Loader(Device* device, const std::function<void(int64_t, int64_t)>& progress)
      : device_(device), progress_(progress) {}

  absl::Status Allocate(const WeightPlan& plan, Weights* weights) {
    total_bytes_ = plan.num_bytes();
    progress_(0, total_bytes_);
    for (const PlannedWeight& planned : plan.weights) {
      ASSIGN_OR_RETURN(DeviceBuffer buffer,
                       DeviceBuffer::Allocate(device_, planned.num_bytes(), "weights"));
      Add(planned, buffer.as<uint8_t>());
      weights->storage.push_back(std::move(buffer));
    }
    for (const PlannedKvScale& scale : plan.kv_scales) {
      const int64_t num_bytes = static_cast<int64_t>(scale.values.size() * sizeof(float));
      ASSIGN_OR_RETURN(DeviceBuffer buffer,
                       DeviceBuffer::Allocate(device_, num_bytes, "KV scales"));
      *scale.pointer = buffer.as<float>();
      bands_.push_back(NumbersBand(scale.values, buffer.data()));
      weights->storage.push_back(std::move(buffer));
    }
    return AllocateStaging();
  }

  void Run() {
    std::vector<HostRows> host;
    for (const Band& band : bands_) {
      if (band.host.src != nullptr) host.push_back(band.host);
    }
    ReadAhead reader(std::move(host), device_);
    int64_t done_bytes = 0, reported_bytes = 0;
    for (const Band& band : bands_) {
      band.scale == nullptr ? Bring(band, &reader, band.out) : BringQuantized(band, &reader);
      done_bytes += band.out_bytes();
      if (done_bytes - reported_bytes < kProgressBytes) continue;
      progress_(std::min(done_bytes, total_bytes_ - 1), total_bytes_);
      reported_bytes = done_bytes;
    }
    device_->Synchronize();
    progress_(total_bytes_, total_bytes_);
  }

 private:
  void Add(const PlannedWeight& planned, uint8_t* out) {
    Weight& weight = *planned.weight;
    weight.data = out;
    const bool is_fp8 = planned.dtype == DType::kF8E4M3;
    float* scale = is_fp8 ? reinterpret_cast<float*>(out + planned.scale_begin()) : nullptr;
    weight.scale = scale;
    for (const TensorSlice& slice : planned.slices) {
      const bool quantize = is_fp8 && slice.stored.dtype != DType::kF8E4M3;
      const DType dtype = TravelDType(planned, slice.stored, device_->is_cuda());
      AddBands(slice, dtype, quantize, out, scale, &bands_);
      if (is_fp8 && !quantize) {
        row_scales_.push_back(std::make_unique<std::vector<float>>(RowScales(slice)));
        bands_.push_back(NumbersBand(*row_scales_.back(), scale));
      }
      out += slice.rows.size() * planned.num_cols() * static_cast<int64_t>(SizeOf(planned.dtype));
      if (is_fp8) scale += slice.rows.size();
    }
  }

  absl::Status AllocateStaging() {
    int64_t wide_bytes = 0, fp8_bytes = 0;
    for (const Band& band : bands_) {
      if (band.scale == nullptr) continue;
      wide_bytes = std::max(wide_bytes, band.num_bytes());
      fp8_bytes = std::max(fp8_bytes, band.fill.num_rows * band.fill.num_cols);
    }
    ASSIGN_OR_RETURN(wide_, DeviceBuffer::Allocate(device_, wide_bytes, "staging"));
    ASSIGN_OR_RETURN(fp8_, DeviceBuffer::Allocate(device_, fp8_bytes, "staging"));
    return absl::OkStatus();
  }

  void Bring(const Band& band, ReadAhead* reader, void* out) {
    if (band.host.src != nullptr) {
      device_->CopyToDevice(out, reader->Next(), band.num_bytes());
    } else {
      FillUniformParams fill = band.fill;
      fill.out = out;
      device_->ops().FillUniform(fill, device_->stream());
    }
  }

  // The stream works in order, so the next band may use the same staging buffers.
  void BringQuantized(const Band& band, ReadAhead* reader) {
    Bring(band, reader, wide_.data());
    const int64_t num_rows = band.fill.num_rows, num_cols = band.fill.num_cols;
    const bool is_cut = band.cols.size() < num_cols;
    device_->ops().QuantizeWeights({.x = wide_.data(),
                                    .out = is_cut ? fp8_.data() : band.out,
                                    .scale = band.scale,
                                    .num_rows = num_rows,
                                    .size = static_cast<int>(num_cols),
                                    .dtype = band.fill.dtype},
                                   device_->stream());
    if (!is_cut) return;
    device_->CopyRows(band.out, band.cols.size(), fp8_.as<uint8_t>() + band.cols.begin, num_cols,
                      band.cols.size(), num_rows);
  }

  Device* const device_;
  const std::function<void(int64_t, int64_t)>& progress_;
  int64_t total_bytes_ = 0;
  std::vector<Band> bands_;
  std::vector<std::unique_ptr<std::vector<float>>> row_scales_;  // what bands read
  DeviceBuffer wide_, fp8_;  // a band before and after it is quantised
};

// lm_head's rows lie in the embedding.
Weight TiedHead(const Weight& embedding, const ModelConfig& config, const Shard& shard) {
  const int64_t offset = shard.vocab.begin * config.hidden_size * SizeOf(embedding.dtype);
  return {static_cast<const uint8_t*>(embedding.data) + offset, nullptr, embedding.dtype};
}

}  // namespace

absl::StatusOr<int64_t> WeightBytes(const ModelConfig& config, const Shard& shard,
                                    const WeightSource& source, bool quantize, bool is_cuda) {
  Weights weights;
  weights.layers.resize(config.num_hidden_layers);
  ASSIGN_OR_RETURN(const WeightPlan plan,
                   PlanWeights(config, shard, source, quantize, is_cuda, &weights));
  return plan.num_bytes();
}

absl::StatusOr<Weights> LoadWeights(const ModelConfig& config, const Shard& shard,
                                    const WeightSource& source, bool quantize, Device* device,
                                    const std::function<void(int64_t, int64_t)>& progress) {
  Weights weights;
  weights.layers.resize(config.num_hidden_layers);
  ASSIGN_OR_RETURN(const WeightPlan plan,
                   PlanWeights(config, shard, source, quantize, device->is_cuda(), &weights));
  Loader loader(device, progress);
  RETURN_IF_ERROR(loader.Allocate(plan, &weights));
  loader.Run();
  if (config.tie_word_embeddings) weights.lm_head = TiedHead(weights.embedding, config, shard);
  return weights;
}

}  // namespace bough
