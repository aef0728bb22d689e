#include "worker/config.h"

#include <cmath>

#include "absl/flags/reflection.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bough {
namespace {

using ::testing::HasSubstr;

Config GoodConfig() {
  Config config;
  config.model = ::testing::TempDir();
  config.group = "g0";
  config.listen = "127.0.0.1:50061";
  config.tp_size = 2;
  return config;
}

std::string Problems(const Config& config, int num_ranks = 2) {
  return std::string(Validate(config, num_ranks).message());
}

class ConfigFlags : public ::testing::Test {
  absl::FlagSaver saver_;
};

TEST_F(ConfigFlags, AGpusStepIsLargerUnlessToldOtherwise) {
  EXPECT_EQ(ParseConfig({})->max_num_batched_tokens, 2048);
  EXPECT_EQ(ParseConfig({"--device=cuda"})->max_num_batched_tokens, 8192);
  EXPECT_EQ(ParseConfig({"--max-num-batched-tokens=512"})->max_num_batched_tokens, 512);
}

TEST(ConfigValidate, AcceptsAGoodOne) { EXPECT_EQ(Problems(GoodConfig()), ""); }

TEST(ConfigValidate, NamesEveryRequiredFlagThatIsMissing) {
  EXPECT_EQ(Problems(Config{}, 1),
            "--model: required, the model's folder\n"
            "--group: required, the group's name\n"
            "--listen: required, rank 0's host:port");
}

TEST(ConfigValidate, TheRanksMustBeTpTimesEp) {
  EXPECT_EQ(Problems(GoodConfig(), 3),
            "--tp-size * --ep-size: must be 3, the number of MPI ranks, is 2 * 1");
}

TEST(ConfigValidate, NamesWhatAWordMayBe) {
  Config config = GoodConfig();
  for (const char* device : {"cpu", "cuda"}) {
    config.device = device;
    EXPECT_EQ(Problems(config), "");
  }
  config.device = "tpu";
  config.quantization = "int8";
  config.kv_cache_dtype = "f16";
  EXPECT_EQ(Problems(config),
            "--device: must be one of cpu, cuda, is 'tpu'\n"
            "--quantization: must be one of none, fp8, is 'int8'\n"
            "--kv-cache-dtype: must be one of auto, fp8, is 'f16'");
}

TEST(ConfigValidate, TheGpusShareIsMoreThanNothingAndAtMostAll) {
  Config config = GoodConfig();
  for (double bad : {0.0, -0.5, 1.01, std::nan("")}) {
    config.gpu_memory_utilization = bad;
    EXPECT_THAT(Problems(config), HasSubstr("--gpu-memory-utilization: must be in (0, 1], is "));
  }
  config.gpu_memory_utilization = 1;
  EXPECT_EQ(Problems(config), "");
}

TEST(ConfigValidate, ModelMustBeAFolder) {
  Config config = GoodConfig();
  config.model = "/dev/null";
  EXPECT_EQ(Problems(config), "--model: must be a folder, '/dev/null' is none");
}

TEST(ConfigValidate, NamesFlagLimitAndValueOfEveryNumberOutOfRange) {
  Config config = GoodConfig();
  config.max_num_seqs = 0;
  config.kv_cache_memory_bytes = -1;
  config.threads = -2;
  EXPECT_EQ(Problems(config),
            "--max-num-seqs: must be in [1, 65536], is 0\n"
            "--kv-cache-memory-bytes: must be in [1048576, 17592186044416], is -1\n"
            "--threads: must be in [0, 1024], is -2");
}

TEST(ConfigValidate, TheLastRanksMetricsPortMustExist) {
  Config config = GoodConfig();
  config.metrics_port = 65535;
  EXPECT_EQ(Problems(config), "--metrics-port: must be 0 or in [1, 65534] for 2 ranks, is 65535");
}

TEST(ConfigValidate, ListenNeedsAHostAndAPort) {
  for (const char* bad :
       {"50061", ":50061", "localhost", "localhost:0", "localhost:65536", "localhost:http"}) {
    Config config = GoodConfig();
    config.listen = bad;
    EXPECT_THAT(Problems(config), HasSubstr("--listen: must be host:port")) << bad;
  }
}

TEST(ConfigValidate, CheckNeedsNeitherGroupNorAddress) {
  Config config = GoodConfig();
  config.check = true;
  config.group = config.listen = "";
  EXPECT_EQ(Problems(config), "");
}

TEST_F(ConfigFlags, CarryTheFieldsNames) {
  const auto config =
      ParseConfig({"--model=m", "--tp-size=4", "--kv-cache-memory-bytes", "1048576",
                   "--noenable-prefix-caching", "--drain-timeout=5s", "--quantization=fp8",
                   "--kv-cache-dtype=fp8", "--gpu-memory-utilization=0.5", "--enforce-eager"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model, "m");
  EXPECT_EQ(config->tp_size, 4);
  EXPECT_EQ(config->kv_cache_memory_bytes, 1048576);
  EXPECT_FALSE(config->enable_prefix_caching);
  EXPECT_EQ(config->drain_timeout, absl::Seconds(5));
  EXPECT_EQ(config->quantization, "fp8");
  EXPECT_EQ(config->kv_cache_dtype, "fp8");
  EXPECT_EQ(config->gpu_memory_utilization, 0.5);
  EXPECT_TRUE(config->enforce_eager);
  EXPECT_EQ(config->max_num_seqs, Config().max_num_seqs);
}

TEST_F(ConfigFlags, APositionalArgumentIsRefused) {
  EXPECT_EQ(ParseConfig({"models/demo"}).status().message(),
            "'models/demo': no positional arguments are taken; see --help");
}

TEST_F(ConfigFlags, HelpHasEveryField) {
  for (const char* flag : {"--model", "--listen", "--tp-size", "--metrics-port", "--check"}) {
    EXPECT_THAT(ConfigHelp(), HasSubstr(flag));
  }
}

}  // namespace
}  // namespace bough
