#include "router/text_stream.h"

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/utf8.h"
#include "gtest/gtest.h"

namespace bough::router {
namespace {

using Strings = std::vector<std::string>;

TextStream Make(Strings stops = {}, bool include = false, bool strip = false) {
  return TextStream(std::make_shared<const Strings>(std::move(stops)), include, strip);
}

// What every push let go, and last the flush.
Strings Feed(TextStream& stream, const Strings& pieces) {
  Strings out;
  for (const std::string& piece : pieces) out.push_back(stream.Push(piece));
  out.push_back(stream.Flush());
  return out;
}

std::string Joined(TextStream& stream, const Strings& pieces) {
  std::string out;
  for (const std::string& part : Feed(stream, pieces)) out += part;
  return out;
}

TEST(TextStream, HoldsAnIncompleteCharacterBack) {
  TextStream stream = Make();
  EXPECT_EQ(Feed(stream, {"a\xE2", "\x82", "\xAC!"}), (Strings{"a", "", "€!", ""}));
}

TEST(TextStream, InvalidBytesBecomeReplacementCharacters) {
  TextStream stream = Make();
  EXPECT_EQ(Joined(stream, {"a\xFFz", "\xE2\x82", "b\xE2"}), "a\uFFFDz\uFFFD\uFFFDb\uFFFD");
}

TEST(TextStream, FindsAStopStringAcrossTokens) {
  TextStream stream = Make({"STOP"});
  EXPECT_EQ(Feed(stream, {"go S", "TO", "P more", "x"}), (Strings{"go ", "", "", "", ""}));
  EXPECT_EQ(stream.stop_index(), 0);
}

TEST(TextStream, LetsGoOfABeginningThatTurnsOutToBeNone) {
  TextStream stream = Make({"STOP"});
  EXPECT_EQ(Feed(stream, {"ST", "ART", "ST"}), (Strings{"", "START", "", "ST"}));
  EXPECT_EQ(stream.stop_index(), -1);
}

TEST(TextStream, KeepsTheStopStringWhenAskedTo) {
  TextStream stream = Make({"\n\n"}, /*include=*/true);
  EXPECT_EQ(Joined(stream, {"one\n", "\ntwo"}), "one\n\n");
}

TEST(TextStream, OfTwoStopStringsTheOneThatIsCompleteFirstCounts) {
  TextStream stream = Make({"abcd", "bc"});
  EXPECT_EQ(Joined(stream, {"xabcd"}), "xa");
  EXPECT_EQ(stream.stop_index(), 1);
}

TEST(TextStream, OfTwoThatEndTogetherTheLongerCounts) {
  TextStream stream = Make({"c", "abc"});
  EXPECT_EQ(Joined(stream, {"x", "a", "bc"}), "x");
  EXPECT_EQ(stream.stop_index(), 1);
}

TEST(TextStream, StripsOnlyTheVeryFirstSpace) {
  TextStream stream = Make({}, false, /*strip=*/true);
  EXPECT_EQ(Joined(stream, {"", " ", " hello", " you"}), " hello you");
}

// Any way to cut the same bytes gives the same text, stop and valid UTF-8 on the way.
TEST(TextStream, HowBytesAreCutChangesNothing) {
  std::mt19937 random(7);
  const Strings atoms = {"a", "b", "ab", "é", "€", "😀", "\xFF", "\xE2\x82", "\xF0\x9F", " ", "\n"};
  const std::vector<Strings> stop_sets = {{}, {"ab"}, {"aab", "b€"}, {"é\n", "a", "😀😀"}};
  for (int round = 0; round < 3000; ++round) {
    std::string whole;
    for (int i = 0; i < 12; ++i) whole += atoms[random() % atoms.size()];
    const Strings& stops = stop_sets[round % stop_sets.size()];
    const bool include = random() % 2, strip = random() % 2;
    TextStream reference = Make(stops, include, strip);
    const std::string expected = Joined(reference, {whole});
    if (stops.empty() && !strip) {
      ASSERT_EQ(expected, ToValidUtf8(whole));
    }

    Strings pieces;
    for (size_t at = 0; at < whole.size();) {
      const size_t n = 1 + random() % 4;
      pieces.push_back(whole.substr(at, n));
      at += n;
    }
    TextStream stream = Make(stops, include, strip);
    std::string text;
    for (const std::string& part : Feed(stream, pieces)) {
      ASSERT_EQ(part, ToValidUtf8(part));
      text += part;
    }
    ASSERT_EQ(text, expected) << round;
    ASSERT_EQ(stream.stop_index(), reference.stop_index()) << round;
  }
}

}  // namespace
}  // namespace bough::router
