#include "common/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>
#include <thread>

namespace bough {
namespace {

using nlohmann::json;
using testing::MatchesRegex;

// Runs `write` and parses every line that it put on stderr.
template <typename F>
std::vector<json> LinesOf(F write) {
  testing::internal::CaptureStderr();
  write();
  std::istringstream text(testing::internal::GetCapturedStderr());
  std::vector<json> lines;
  for (std::string line; std::getline(text, line);) {
    lines.push_back(json::parse(line, nullptr, /*allow_exceptions=*/false));
    EXPECT_TRUE(lines.back().is_object()) << line;
  }
  return lines;
}

class Log : public testing::Test {
 protected:
  void SetUp() override { InitLog("info", {{"role", "worker"}, {"group", "g0"}, {"rank", 1}}); }
};

TEST_F(Log, ALineHasTimeLevelProcessFieldsAndFields) {
  const auto lines = LinesOf([] {
    LogInfo("request finished", {{"request_id", "abc"}, {"tokens", 64}});
  });
  ASSERT_EQ(lines.size(), 1u);
  const json& line = lines[0];
  EXPECT_THAT(line["ts"].get<std::string>(), MatchesRegex("....-..-..T..:..:..\\....Z"));
  EXPECT_EQ(line["level"], "info");
  EXPECT_EQ(line["role"], "worker");
  EXPECT_EQ(line["group"], "g0");
  EXPECT_EQ(line["rank"], 1);
  EXPECT_EQ(line["msg"], "request finished");
  EXPECT_EQ(line["request_id"], "abc");
  EXPECT_EQ(line["tokens"], 64);
}

TEST_F(Log, HostileStringsStayInsideOneJsonLine) {
  const std::string ids[] = {"a\"b",        "a\nb\r\tc", "a\\", "{}%v{0}", std::string("a\0b", 3),
                             "\u00e9\u2028"};
  for (const std::string& id : ids) {
    const auto lines = LinesOf([&] { LogError(id, {{"request_id", id}}); });
    ASSERT_EQ(lines.size(), 1u) << id;
    EXPECT_EQ(lines[0]["request_id"], id);
    EXPECT_EQ(lines[0]["msg"], id);
  }
}

TEST_F(Log, BytesThatAreNotUtf8AreReplaced) {
  const auto lines = LinesOf([] { LogWarning("x", {{"request_id", "a\xff\xc3(b"}}); });
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0]["request_id"], "a\ufffd\ufffd(b");
}

TEST_F(Log, FieldsCannotReplaceTheLinesOwnKeys) {
  const auto lines = LinesOf([] { LogInfo("real", {{"msg", "fake"}, {"level", "fake"}}); });
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0]["msg"], "real");
  EXPECT_EQ(lines[0]["level"], "info");
}

TEST_F(Log, LinesBelowTheLevelAreNotWritten) {
  InitLog("warning", json::object());
  const auto lines = LinesOf([] {
    LogInfo("no");
    LogWarning("yes");
    LogError("yes");
  });
  EXPECT_EQ(lines.size(), 2u);
}

TEST_F(Log, LinesOfManyThreadsDoNotMix) {
  const auto lines = LinesOf([] {
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([] {
        for (int i = 0; i < 100; ++i) LogInfo(std::string(200, 'x'));
      });
    }
    for (auto& thread : threads) thread.join();
  });
  EXPECT_EQ(lines.size(), 400u);
}

TEST(LogDeathTest, RefusesAnUnknownLevel) {
  EXPECT_DEATH(InitLog("verbose", json::object()), "is \"verbose\"");
}

}  // namespace
}  // namespace bough
