// How fast weights reach the device: folders of Mixtral-8x7B's shapes, written beforehand so that
// they lie in the page cache, and dummy weights.
//
//   bench-loading --device=cuda --dir=/dev/shm/bough --out=bench/results/h200/loading.json
//
// A case is the first load of a folder in this process, in seconds from the call to the last byte on
// the device; a folder's floor is its bytes over the rate of copies from pinned memory.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <random>
#include <thread>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/results.h"
#include "common/check.h"
#include "nlohmann/json.hpp"
#include "worker/model/checkpoint.h"
#include "worker/model/dummy_weights.h"
#include "worker/model/weights.h"

ABSL_FLAG(std::string, device, "cuda", "cpu or cuda.");
ABSL_FLAG(
    std::string, dir, "",
    "Where folders go, one at a time; removed at the end. Required. A full bf16 one has 93 GB.");
ABSL_FLAG(int, layers, 32, "Layers of the models.");
ABSL_FLAG(std::string, git, "", "Commit that is measured. Empty: asked of git.");
ABSL_FLAG(std::string, out, "", "Results file. Empty: none.");

namespace bough {
namespace {

using Json = nlohmann::json;

ModelConfig Mixtral(int num_layers) {
  ModelConfig c;
  c.architecture = "MixtralForCausalLM";
  c.vocab_size = 32000;
  c.hidden_size = 4096;
  c.intermediate_size = 14336;
  c.num_hidden_layers = num_layers;
  c.num_attention_heads = 32;
  c.num_key_value_heads = 8;
  c.head_dim = 128;
  c.num_local_experts = 8;
  c.num_experts_per_tok = 2;
  return c;
}

struct Entry {
  std::string name;
  Shape shape;
  DType dtype;
};

// All tensors of the published folder.
std::vector<Entry> Entries(const ModelConfig& c, DType linear) {
  std::vector<Entry> entries;
  const int64_t h = c.hidden_size, inter = c.intermediate_size;
  const int64_t q = int64_t{c.num_attention_heads} * c.head_dim;
  const int64_t kv = int64_t{c.num_key_value_heads} * c.head_dim;
  const auto add = [&](const std::string& name, const Shape& shape) {
    entries.push_back({name, shape, DType::kBF16});
  };
  const auto add_linear = [&](const std::string& name, const Shape& shape) {
    entries.push_back({name + ".weight", shape, linear});
    if (linear == DType::kF8E4M3) entries.push_back({name + ".weight_scale", {}, DType::kF32});
  };
  add("model.embed_tokens.weight", {c.vocab_size, h});
  add("lm_head.weight", {c.vocab_size, h});
  add("model.norm.weight", {h});
  for (int i = 0; i < c.num_hidden_layers; ++i) {
    const std::string layer = absl::StrCat("model.layers.", i, ".");
    add(layer + "input_layernorm.weight", {h});
    add(layer + "post_attention_layernorm.weight", {h});
    add_linear(layer + "self_attn.q_proj", {q, h});
    add_linear(layer + "self_attn.k_proj", {kv, h});
    add_linear(layer + "self_attn.v_proj", {kv, h});
    add_linear(layer + "self_attn.o_proj", {h, q});
    add(layer + "block_sparse_moe.gate.weight", {c.num_local_experts, h});
    for (int e = 0; e < c.num_local_experts; ++e) {
      const std::string expert = absl::StrCat(layer, "block_sparse_moe.experts.", e, ".");
      add_linear(expert + "w1", {inter, h});
      add_linear(expert + "w2", {h, inter});
      add_linear(expert + "w3", {inter, h});
    }
  }
  return entries;
}

int64_t NumBytes(const Entry& entry) {
  int64_t bytes = SizeOf(entry.dtype);
  for (int64_t size : entry.shape) bytes *= size;
  return bytes;
}

constexpr int64_t kChunkBytes = int64_t{16} << 20;

void WriteAt(int fd, const void* bytes, int64_t count, int64_t offset) {
  CHECK_EQ(pwrite(fd, bytes, count, offset), count) << "is there room?";
}

// Finite numbers everywhere (their values do not change the speed), by one thread a core.
void WriteNoise(int fd, int64_t begin, int64_t end) {
  std::string noise(kChunkBytes, '\0');
  std::mt19937 random(1);
  for (char& byte : noise) byte = static_cast<char>(random() % 0x3f);
  std::atomic<int64_t> next = begin;
  std::vector<std::thread> writers;
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i) {
    writers.emplace_back([&] {
      for (int64_t at = next.fetch_add(kChunkBytes); at < end; at = next.fetch_add(kChunkBytes)) {
        WriteAt(fd, noise.data(), std::min(kChunkBytes, end - at), at);
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
}

// One file. Returns its data's bytes.
int64_t WriteFolder(const ModelConfig& config, DType linear, const std::string& dir) {
  std::filesystem::create_directories(dir);
  const std::vector<Entry> entries = Entries(config, linear);
  Json header;
  int64_t num_bytes = 0;
  std::vector<int64_t> scales;  // where they begin
  for (const Entry& entry : entries) {
    const char* dtype = entry.dtype == DType::kF32    ? "F32"
                        : entry.dtype == DType::kBF16 ? "BF16"
                                                      : "F8_E4M3";
    const int64_t begin = num_bytes;
    if (entry.dtype == DType::kF32) scales.push_back(begin);
    num_bytes += NumBytes(entry);
    header[entry.name] = {
        {"dtype", dtype}, {"shape", entry.shape}, {"data_offsets", {begin, num_bytes}}};
  }
  const std::string text = header.dump();
  const uint64_t header_bytes = text.size();
  const int64_t data = static_cast<int64_t>(sizeof(header_bytes) + header_bytes);
  const int fd = open((dir + "/model.safetensors").c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0644);
  CHECK_GE(fd, 0) << dir;
  WriteNoise(fd, data, data + num_bytes);
  WriteAt(fd, &header_bytes, sizeof(header_bytes), 0);
  WriteAt(fd, text.data(), header_bytes, sizeof(header_bytes));
  const float one = 1;
  for (int64_t scale : scales) WriteAt(fd, &one, sizeof(one), data + scale);
  close(fd);
  return num_bytes;
}

// GB/s of copies from pinned memory: what a load cannot exceed.
double CopyCeiling(Device* device) {
  constexpr int64_t kBytes = int64_t{256} << 20;
  constexpr int kRepeats = 16;
  void* host = device->AllocateHost(kBytes);
  std::fill_n(static_cast<char*>(host), kBytes, 1);
  const DeviceBuffer buffer = DeviceBuffer::Scratch(device, kBytes / 4, DType::kF32);
  device->CopyToDevice(buffer.data(), host, kBytes);
  device->Synchronize();
  const absl::Time start = absl::Now();
  for (int i = 0; i < kRepeats; ++i) device->CopyToDevice(buffer.data(), host, kBytes);
  device->Synchronize();
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  device->FreeHost(host);
  return kRepeats * kBytes / seconds / 1e9;
}

class LoadingBench {
 public:
  LoadingBench(Device* device, const std::string& command) : device_(device) {
    results_.scenario = "loading";
    results_.device = device->name();
    results_.command = command;
    results_.git = absl::GetFlag(FLAGS_git);
    results_.ceilings["h2d_gbps"] = CopyCeiling(device);
  }

  // `read_bytes`: of the folder; 0 for dummy weights. `gate`: seconds.
  void Time(const std::string& name, const WeightSource& source, bool quantize, int64_t read_bytes,
            std::optional<double> gate) {
    const Shard shard = *MakeShard(model_, 1, 1, 0);
    const auto bytes = WeightBytes(model_, shard, source, quantize, device_->is_cuda());
    CHECK_OK(bytes.status());
    const absl::Time start = absl::Now();
    const auto weights = LoadWeights(model_, shard, source, quantize, device_, [](auto, auto) {});
    const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
    CHECK_OK(weights.status());
    const double floor = read_bytes / (1e9 * results_.ceilings["h2d_gbps"]);
    results_.cases.push_back(
        {.name = name, .value = seconds, .unit = "s", .floor = floor, .gate = gate});
    if (read_bytes > 0) {
      results_.cases.push_back(
          {.name = name + "/read", .value = read_bytes / seconds / 1e9, .unit = "GB/s"});
    }
    std::printf("%-14s %2d layers %6.2f GB read %6.2f GB on the device %7.3f s, floor %7.3f s\n",
                name.c_str(), model_.num_hidden_layers, read_bytes / 1e9, *bytes / 1e9, seconds,
                floor);
    std::fflush(stdout);
    // Now: a bench that is stopped keeps its finished cases.
    const std::string out = absl::GetFlag(FLAGS_out);
    written_ = out.empty() || WriteFile(out, ToJson(results_));
  }

  void TimeFolder(const std::string& name, DType linear, bool quantize,
                  std::optional<double> gate) {
    const std::string dir = absl::StrCat(absl::GetFlag(FLAGS_dir), "/", name);
    const int64_t read_bytes = WriteFolder(model_, linear, dir);
    {
      const auto source = Checkpoint::Open(dir);
      CHECK_OK(source.status());
      Time(name, **source, quantize, read_bytes, gate);
    }
    std::filesystem::remove_all(dir);
  }

  double copy_gbps() const { return results_.ceilings.at("h2d_gbps"); }

  bool written() const { return written_; }

 private:
  Device* const device_;
  const ModelConfig model_ = Mixtral(absl::GetFlag(FLAGS_layers));
  BenchResults results_;
  bool written_ = false;
};

int Main(const std::string& command) {
  CHECK(!absl::GetFlag(FLAGS_dir).empty()) << "--dir is required";
  absl::StatusOr<std::unique_ptr<Device>> device = MakeCpuDevice();
  if (absl::GetFlag(FLAGS_device) == "cuda") device = OpenCudaDevice(0);
  CHECK_OK(device.status());
  LoadingBench bench(device->get(), command);
  std::printf("copies from pinned memory %.1f GB/s\n", bench.copy_gbps());
  bench.TimeFolder("fp8", DType::kF8E4M3, false, 30.0);
  bench.Time("dummy-fp8", DummyWeights(), true, 0, {});
  bench.TimeFolder("bf16-to-fp8", DType::kBF16, true, {});
  return bench.written() ? 0 : 1;
}

}  // namespace
}  // namespace bough

int main(int argc, char** argv) {
  const std::string command = bough::CommandLine(argc, argv);
  absl::ParseCommandLine(argc, argv);
  return bough::Main(command);
}
