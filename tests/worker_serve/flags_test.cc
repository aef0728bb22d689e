#include "common/flags.h"

#include <fstream>

#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

ABSL_FLAG(int32_t, test_num_rows, 4, "Rows.");
ABSL_FLAG(bool, test_eager, false, "Eager.");

namespace bough {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class Flags : public ::testing::Test {
 protected:
  absl::StatusOr<CommandLine> Parse(const std::vector<std::string>& args) {
    return ParseFlags(args, "flags_test.cc");
  }
  std::string Error(const std::vector<std::string>& args) {
    return std::string(Parse(args).status().message());
  }

 private:
  absl::FlagSaver saver_;
};

TEST_F(Flags, TakeDashesAndUnderscoresAndBothWaysToGiveAValue) {
  ASSERT_TRUE(Parse({"--test-num-rows=7"}).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_test_num_rows), 7);
  ASSERT_TRUE(Parse({"--test_num_rows", "8"}).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_test_num_rows), 8);
}

TEST_F(Flags, ABoolNeedsNoValueAndCanBeNegated) {
  ASSERT_TRUE(Parse({"--test-eager"}).ok());
  EXPECT_TRUE(absl::GetFlag(FLAGS_test_eager));
  ASSERT_TRUE(Parse({"--notest-eager"}).ok());
  EXPECT_FALSE(absl::GetFlag(FLAGS_test_eager));
}

TEST_F(Flags, WhatIsNoFlagIsPositional) {
  const auto line = Parse({"a", "--test-eager", "b", "--", "--c"});
  ASSERT_TRUE(line.ok());
  EXPECT_THAT(line->positional, ElementsAre("a", "b", "--c"));
}

TEST_F(Flags, AnUnknownFlagIsNamed) {
  EXPECT_EQ(Error({"--no-such"}), "--no-such: no such flag; see --help");
}

TEST_F(Flags, FlagsOfOtherFilesDoNotExist) {
  EXPECT_EQ(Error({"--gtest_filter=x"}), "--gtest_filter: no such flag; see --help");
  EXPECT_EQ(Error({"--fromenv=x"}), "--fromenv: no such flag; see --help");
}

TEST_F(Flags, AValueOfAnotherTypeIsNamedAndChangesNothing) {
  EXPECT_THAT(Error({"--test-num-rows=many"}), HasSubstr("--test-num-rows: 'many' is not valid"));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_num_rows), 4);
}

TEST_F(Flags, AMissingValueIsNamed) {
  EXPECT_EQ(Error({"--test-num-rows"}), "--test-num-rows: needs a value");
}

TEST_F(Flags, AFlagFileHoldsOneFlagALine) {
  const std::string path = ::testing::TempDir() + "/flags.txt";
  std::ofstream(path) << "# rows\n--test-num-rows=9\n\n--test-eager\n";
  ASSERT_TRUE(Parse({"--flagfile=" + path}).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_test_num_rows), 9);
  EXPECT_TRUE(absl::GetFlag(FLAGS_test_eager));
}

TEST_F(Flags, AFlagFileThatNamesItselfIsRefused) {
  const std::string path = ::testing::TempDir() + "/loop.txt";
  std::ofstream(path) << "--flagfile=" << path << "\n";
  EXPECT_THAT(Error({"--flagfile=" + path}), HasSubstr("nested too deep"));
}

TEST_F(Flags, HelpNamesEveryFlagWithItsDefault) {
  EXPECT_TRUE(Parse({"--help"})->help);
  const std::string help = FlagsHelp("usage", "flags_test.cc");
  EXPECT_THAT(help, HasSubstr("--test-num-rows (default 4)\n      Rows."));
  EXPECT_THAT(help, HasSubstr("--test-eager"));
}

}  // namespace
}  // namespace bough
