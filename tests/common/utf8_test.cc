#include "common/utf8.h"

#include <gtest/gtest.h>

namespace bough {
namespace {

TEST(Utf8, CountsTheBytesOfTheFirstCharacter) {
  EXPECT_EQ(Utf8CharBytes("a\u00e9"), 1u);
  EXPECT_EQ(Utf8CharBytes("\u00e9x"), 2u);
  EXPECT_EQ(Utf8CharBytes("\u4f60x"), 3u);
  EXPECT_EQ(Utf8CharBytes("\U0001f600x"), 4u);
  EXPECT_EQ(Utf8CharBytes(std::string_view("\0", 1)), 1u);
}

TEST(Utf8, AcceptsTheEndsOfEveryLength) {
  for (const char* text :
       {"\x7f", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
        "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_EQ(Utf8CharBytes(text), std::string_view(text).size());
  }
}

TEST(Utf8, MalformedAndCutCharactersHaveNoBytes) {
  for (const char* text : {"", "\x80", "\xc0\x80", "\xc1\xbf", "\xc3", "\xc3(", "\xe0\x9f\xbf",
                           "\xe4\xbd", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf", "\xf0\x9f\x98",
                           "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff"}) {
    EXPECT_EQ(Utf8CharBytes(text), 0u) << testing::PrintToString(std::string(text));
  }
}

TEST(Utf8, EachByteOfNoCharacterBecomesAReplacement) {
  EXPECT_EQ(ToValidUtf8("na\u00efve"), "na\u00efve");
  EXPECT_EQ(ToValidUtf8("a\xe4\xbdz"), "a\ufffd\ufffdz");
  EXPECT_EQ(ToValidUtf8("\xed\xa0\x80"), "\ufffd\ufffd\ufffd");
}

}  // namespace
}  // namespace bough
