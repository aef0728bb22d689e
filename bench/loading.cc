// How fast weights reach the device: folders of Mixtral-8x7B's shapes with fewer layers, written
// beforehand so that they lie in the page cache, and dummy weights. Prints one line a case.
//
//   bench-loading --device=cuda --dir=/dev/shm/bough --layers=4

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/check.h"
#include "nlohmann/json.hpp"
#include "worker/model/checkpoint.h"
#include "worker/model/dummy_weights.h"
#include "worker/model/weights.h"

ABSL_FLAG(std::string, device, "cuda", "cpu or cuda.");
ABSL_FLAG(std::string, dir, "", "Where the folders go; they are removed at the end. Required.");
ABSL_FLAG(int, layers, 4, "Layers of the folders; 1.45 GB each in FP8.");
ABSL_FLAG(int, dummy_layers, 8, "Layers of the dummy model.");

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

// One file of finite numbers: the values do not change the speed. Returns its bytes.
int64_t WriteFolder(const ModelConfig& config, DType linear, const std::string& dir) {
  std::filesystem::create_directories(dir);
  const std::vector<Entry> entries = Entries(config, linear);
  Json header;
  int64_t end = 0;
  for (const Entry& entry : entries) {
    const char* dtype = entry.dtype == DType::kF32    ? "F32"
                        : entry.dtype == DType::kBF16 ? "BF16"
                                                      : "F8_E4M3";
    const int64_t begin = end;
    end += NumBytes(entry);
    header[entry.name] = {{"dtype", dtype}, {"shape", entry.shape}, {"data_offsets", {begin, end}}};
  }
  const std::string text = header.dump();
  const uint64_t header_bytes = text.size();
  std::string noise(1 << 20, '\0');
  std::mt19937 random(1);
  for (char& byte : noise) byte = static_cast<char>(random() % 0x3f);
  std::ofstream out(dir + "/model.safetensors", std::ios::binary);
  out.write(reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes));
  out << text;
  for (const Entry& entry : entries) {
    const float one = 1;
    if (entry.dtype == DType::kF32) out.write(reinterpret_cast<const char*>(&one), sizeof(one));
    if (entry.dtype == DType::kF32) continue;
    for (int64_t left = NumBytes(entry); left > 0; left -= noise.size()) {
      out.write(noise.data(), std::min<int64_t>(left, noise.size()));
    }
  }
  out.close();
  CHECK(out.good()) << dir << ": cannot be written; is there room for " << end << " bytes?";
  return end;
}

// `read_bytes`: of the folder; 0 for dummy weights.
void Time(const std::string& name, const ModelConfig& config, const WeightSource& source,
          bool quantize, int64_t read_bytes, Device* device) {
  const Shard shard = *MakeShard(config, 1, 1, 0);
  const auto bytes = WeightBytes(config, shard, source, quantize, device->is_cuda());
  CHECK_OK(bytes.status());
  const int64_t free_before = device->FreeBytes();
  int num_reports = 0;
  const absl::Time start = absl::Now();
  const auto weights =
      LoadWeights(config, shard, source, quantize, device, [&](auto, auto) { ++num_reports; });
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  CHECK_OK(weights.status());
  std::printf(
      "%-14s %2d layers %6.2f GB read %6.2f GB on the device %7.3f s %6.2f GB/s %4d reports",
      name.c_str(), config.num_hidden_layers, read_bytes / 1e9, *bytes / 1e9, seconds,
      std::max(read_bytes, *bytes) / seconds / 1e9, num_reports);
  std::printf("  device took %.2f GB\n", (free_before - device->FreeBytes()) / 1e9);
  std::fflush(stdout);
}

void TimeFolder(const std::string& name, DType linear, bool quantize, Device* device) {
  const std::string dir = absl::StrCat(absl::GetFlag(FLAGS_dir), "/", name);
  const ModelConfig config = Mixtral(absl::GetFlag(FLAGS_layers));
  const int64_t read_bytes = WriteFolder(config, linear, dir);
  const auto source = Checkpoint::Open(dir);
  CHECK_OK(source.status());
  for (int i = 0; i < 2; ++i) Time(name, config, **source, quantize, read_bytes, device);
  std::filesystem::remove_all(dir);
}

void Main() {
  CHECK(!absl::GetFlag(FLAGS_dir).empty()) << "--dir is required";
  absl::StatusOr<std::unique_ptr<Device>> device = MakeCpuDevice();
  if (absl::GetFlag(FLAGS_device) == "cuda") device = OpenCudaDevice(0);
  CHECK_OK(device.status());
  const ModelConfig dummy = Mixtral(absl::GetFlag(FLAGS_dummy_layers));
  Time("dummy-bf16", dummy, DummyWeights(), false, 0, device->get());
  Time("dummy-fp8", dummy, DummyWeights(), true, 0, device->get());
  TimeFolder("fp8", DType::kF8E4M3, false, device->get());
  TimeFolder("bf16-to-fp8", DType::kBF16, true, device->get());
}

}  // namespace
}  // namespace bough

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  bough::Main();
}
