// A SentencePiece model small enough to know by heart: <unk> 0, <s> 1, </s> 2, bytes 3..258, "▁"
// 259, then one piece per printable ASCII character and two words.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/tokenizer.h"
#include "gtest/gtest.h"
#include "sentencepiece/model.pb.h"

namespace bough::testing {

inline constexpr int32_t kTinySpace = 259;

// The piece of one printable ASCII character.
inline int32_t TinyChar(char c) { return c == ' ' ? kTinySpace : 260 + (c - '!'); }
// The piece of one byte.
inline int32_t TinyByte(int byte) { return 3 + byte; }

inline std::vector<int32_t> TinyText(const std::string& text) {
  std::vector<int32_t> ids;
  for (char c : text) ids.push_back(TinyChar(c));
  return ids;
}

// Writes tokenizer.model into a folder of its own and returns the folder.
inline std::string WriteTinyModelFolder() {
  using Piece = sentencepiece::ModelProto::SentencePiece;
  sentencepiece::ModelProto model;
  auto add = [&model](const std::string& text, Piece::Type type, float score) {
    auto* piece = model.add_pieces();
    piece->set_piece(text);
    piece->set_type(type);
    piece->set_score(score);
  };
  add("<unk>", Piece::UNKNOWN, 0);
  add("<s>", Piece::CONTROL, 0);
  add("</s>", Piece::CONTROL, 0);
  for (int byte = 0; byte < 256; ++byte) add(absl::StrFormat("<0x%02X>", byte), Piece::BYTE, 0);
  add("\u2581", Piece::NORMAL, -1);
  for (char c = '!'; c <= '~'; ++c) add(std::string(1, c), Piece::NORMAL, -2);
  add("\u2581h", Piece::NORMAL, 2);
  add("\u2581he", Piece::NORMAL, 3);
  model.mutable_trainer_spec()->set_model_type(sentencepiece::TrainerSpec::BPE);
  model.mutable_trainer_spec()->set_byte_fallback(true);
  model.mutable_normalizer_spec()->set_name("identity");
  model.mutable_normalizer_spec()->set_remove_extra_whitespaces(false);

  const std::string folder = ::testing::TempDir() + "tiny_tokenizer_" + std::to_string(getpid());
  CHECK(std::system(("mkdir -p " + folder).c_str()) == 0);
  std::ofstream(folder + "/tokenizer.model", std::ios::binary) << model.SerializeAsString();
  return folder;
}

inline std::unique_ptr<Tokenizer> LoadTinyTokenizer() {
  auto tokenizer = Tokenizer::Load(WriteTinyModelFolder() + "/tokenizer.model");
  CHECK_OK(tokenizer.status());
  return *std::move(tokenizer);
}

}  // namespace bough::testing
