#include "common/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "nlohmann/json.hpp"
#include "sentencepiece/model.pb.h"

namespace bough {
namespace {

using testing::HasSubstr;
using Role = ChatTurn::Role;
using Ids = std::vector<int32_t>;

constexpr char kModel[] = "models/demo/tokenizer.model";

const Tokenizer& Demo() {
  static const auto& tokenizer =
      *new absl::StatusOr<std::unique_ptr<Tokenizer>>(Tokenizer::Load(kModel));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return **tokenizer;
}

std::string Concatenated(const Ids& ids) {
  std::string text;
  for (int32_t id : ids) text += Demo().PieceBytes(id);
  return text;
}

Ids Joined(std::initializer_list<Ids> parts) {
  Ids all;
  for (const Ids& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

// Turns that EncodeChat refuses, and what it says of them.
std::string ChatError(const std::vector<ChatTurn>& turns) {
  const auto ids = Demo().EncodeChat(turns);
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(ids.status().message());
}

const char* const kTexts[] = {"",
                              "Hello, world.",
                              "  two  spaces ",
                              "\n\tlines\n\n",
                              "na\u00efve \u4f60\u597d \U0001f600",
                              "</s><s>[INST] <0x0A> <unk>",
                              "2026 + 1 = 2027"};

nlohmann::json Golden() {
  return nlohmann::json::parse(std::ifstream("tests/golden/tokenizer.json"));
}

TEST(Tokenizer, EncodesAndDecodesAsSentencePieceDoes) {
  const nlohmann::json golden = Golden();
  ASSERT_GE(golden["strings"].size(), 10u);
  for (const auto& string : golden["strings"]) {
    const auto text = string["text"].get<std::string>();
    SCOPED_TRACE(text);
    EXPECT_EQ(Demo().Encode(text), string["ids"].get<Ids>());
    EXPECT_EQ(Demo().Decode(string["ids"].get<Ids>()), string["decoded"].get<std::string>());
  }
}

TEST(Tokenizer, DecodeReturnsWhatWasEncoded) {
  for (const char* text : kTexts) EXPECT_EQ(Demo().Decode(Demo().Encode(text)), text);
}

TEST(Tokenizer, PieceBytesConcatenateToASpaceAndTheText) {
  for (const char* text : kTexts) {
    const std::string expected = *text == '\0' ? "" : std::string(" ") + text;
    EXPECT_EQ(Concatenated(Demo().Encode(text)), expected);
  }
}

TEST(Tokenizer, ControlSymbolsInTextAreText) {
  for (int32_t id : Demo().Encode("</s><s>")) {
    EXPECT_NE(id, Demo().bos_id());
    EXPECT_NE(id, Demo().eos_id());
  }
}

TEST(Tokenizer, ByteAndControlPiecesGiveTheirBytes) {
  const Ids newline = Demo().Encode("\n");
  EXPECT_EQ(Demo().PieceBytes(newline.back()), "\n");
  EXPECT_EQ(Demo().PieceBytes(Demo().bos_id()), "");
  EXPECT_EQ(Demo().PieceBytes(Demo().eos_id()), "");
  // A character outside the vocabulary is its UTF-8 bytes, one piece each.
  const Ids rare = Demo().Encode("\U0001f600");
  ASSERT_GE(rare.size(), 4u);
  EXPECT_EQ(Demo().PieceBytes(rare[rare.size() - 4]), "\xf0");
  EXPECT_EQ(Demo().PieceBytes(rare.back()), "\x80");
}

TEST(Tokenizer, TextThatIsNotUtf8IsEncodedNotRefused) {
  EXPECT_EQ(Demo().Decode(Demo().Encode("a\xff"
                                        "b")),
            "a\ufffdb");
}

TEST(Chat, AgreesWithTheReferenceTemplate) {
  const nlohmann::json golden = Golden();
  ASSERT_GE(golden["chats"].size(), 4u);
  for (const auto& chat : golden["chats"]) {
    SCOPED_TRACE(chat["messages"].dump());
    std::vector<ChatTurn> turns;
    for (const auto& message : chat["messages"]) {
      const std::string role = message["role"];
      turns.push_back({role == "system" ? Role::kSystem
                       : role == "user" ? Role::kUser
                                        : Role::kAssistant,
                       message["content"]});
    }
    const auto ids = Demo().EncodeChat(turns);
    // The reference also renders finished conversations, as training sees them; bough answers none.
    EXPECT_EQ(ids.ok(), turns.back().role == Role::kUser) << ids.status();
    if (ids.ok()) {
      EXPECT_EQ(*ids, chat["ids"].get<Ids>());
    }
  }
}

TEST(Chat, FollowsTheInstTemplate) {
  const Tokenizer& t = Demo();
  const auto ids = t.EncodeChat(std::vector<ChatTurn>{
      {Role::kUser, "Hi"}, {Role::kAssistant, "Hello."}, {Role::kUser, "Bye"}});
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(*ids, Joined({{t.bos_id()},
                          t.Encode("[INST] Hi [/INST]"),
                          t.Encode("Hello."),
                          {t.eos_id()},
                          t.Encode("[INST] Bye [/INST]")}));
}

TEST(Chat, PutsTheSystemMessageIntoTheFirstUserTurn) {
  const Tokenizer& t = Demo();
  const auto ids =
      t.EncodeChat(std::vector<ChatTurn>{{Role::kSystem, "Be short."}, {Role::kUser, "Hi"}});
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(*ids, Joined({{t.bos_id()}, t.Encode("[INST] Be short.\n\nHi [/INST]")}));
}

TEST(Chat, RefusesTurnsOutOfOrderAndNamesTheTurn) {
  const ChatTurn system{Role::kSystem, "s"}, user{Role::kUser, "u"}, answer{Role::kAssistant, "a"};
  EXPECT_THAT(ChatError({}), HasSubstr("at least one user turn"));
  EXPECT_THAT(ChatError({system}), HasSubstr("chat.messages[0]: the last turn must be a user's"));
  EXPECT_THAT(ChatError({answer}), HasSubstr("chat.messages[0]: must be a user turn"));
  EXPECT_THAT(ChatError({user, user}), HasSubstr("chat.messages[1]: must be an assistant turn"));
  EXPECT_THAT(ChatError({user, answer}), HasSubstr("chat.messages[1]: the last turn"));
  EXPECT_THAT(ChatError({user, system}), HasSubstr("chat.messages[1]: must be an assistant"));
  EXPECT_THAT(ChatError({system, system, user}), HasSubstr("chat.messages[1]: must be a user"));
}

TEST(Load, AMissingFileIsNotFound) {
  const absl::Status status = Tokenizer::Load("no/such/tokenizer.model").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no/such/tokenizer.model"));
}

std::string FileContent(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

absl::Status LoadContent(const std::string& content, const std::string& path) {
  std::ofstream(path, std::ios::binary) << content;
  return Tokenizer::Load(path).status();
}

TEST(Load, WhatIsNoModelIsInvalidAndNamed) {
  const std::string path = testing::TempDir() + "/damaged.model", good = FileContent(kModel);
  for (const std::string& content : {std::string(), std::string("{\"a\": 1}"),
                                     good.substr(0, good.size() / 2), good.substr(0, 100)}) {
    const absl::Status status = LoadContent(content, path);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << content.size() << " bytes";
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  }
  EXPECT_EQ(Tokenizer::Load(testing::TempDir()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

struct Unsupported {
  void (*change)(sentencepiece::ModelProto&);
  const char* expected;
};

class LoadUnsupported : public testing::TestWithParam<Unsupported> {};

TEST_P(LoadUnsupported, IsRefusedByName) {
  sentencepiece::ModelProto model;
  ASSERT_TRUE(model.ParseFromString(FileContent(kModel)));
  GetParam().change(model);
  const absl::Status status =
      LoadContent(model.SerializeAsString(), testing::TempDir() + "/unsupported.model");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().expected));
}

using sentencepiece::ModelProto;
INSTANTIATE_TEST_SUITE_P(
    Settings, LoadUnsupported,
    testing::Values(
        Unsupported{[](ModelProto& m) {
                      m.mutable_trainer_spec()->set_model_type(sentencepiece::TrainerSpec::UNIGRAM);
                    },
                    "model_type must be BPE, is UNIGRAM"},
        Unsupported{[](ModelProto& m) { m.mutable_trainer_spec()->set_byte_fallback(false); },
                    "byte_fallback must be true"},
        Unsupported{[](ModelProto& m) {
                      m.mutable_normalizer_spec()->set_name("nmt_nfkc");
                      m.mutable_normalizer_spec()->set_precompiled_charsmap("x");
                    },
                    "the normalizer must be identity, is nmt_nfkc"},
        Unsupported{
            [](ModelProto& m) { m.mutable_normalizer_spec()->set_remove_extra_whitespaces(true); },
            "remove_extra_whitespaces must be false"},
        Unsupported{[](ModelProto& m) { m.mutable_normalizer_spec()->set_add_dummy_prefix(false); },
                    "add_dummy_prefix must be true"},
        Unsupported{[](ModelProto& m) {
                      m.mutable_pieces(500)->set_type(ModelProto::SentencePiece::USER_DEFINED);
                    },
                    "piece 500 is of type USER_DEFINED"},
        Unsupported{[](ModelProto& m) { *m.mutable_pieces(501) = m.pieces(500); },
                    "piece 501 repeats"},
        Unsupported{[](ModelProto& m) { m.mutable_pieces(3)->set_piece("<0x01>"); },
                    "it has no piece <0x00>"},
        Unsupported{[](ModelProto& m) { m.mutable_pieces(2)->set_piece("</x>"); },
                    "no BOS or no EOS"}));

}  // namespace
}  // namespace bough
