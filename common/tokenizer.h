// Text <-> token ids by a SentencePiece model (tokenizer.model), and the [INST] chat template.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace bough {

struct ChatTurn {
  enum class Role { kSystem, kUser, kAssistant } role;
  std::string content;
};

// Thread-safe after Load.
class Tokenizer {
 public:
  // NOT_FOUND when `path` does not exist, INVALID_ARGUMENT when it is no SentencePiece model; both say
  // which path.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path);
  ~Tokenizer();

  int vocab_size() const;
  int bos_id() const;
  int eos_id() const;

  // Without BOS or EOS. Control symbols in the text are text.
  std::vector<int32_t> Encode(std::string_view text) const;

  // `<s> [INST] user [/INST] assistant</s> [INST] ...` as published for Mixtral-Instruct: BOS, then per
  // user turn the encoded "[INST] content [/INST]", per assistant turn the encoded content and EOS. A
  // system message is put in front of the first user turn, two newlines between.
  // INVALID_ARGUMENT (with the turn's index) when turns do not alternate user/assistant or the last is
  // not a user's.
  absl::StatusOr<std::vector<int32_t>> EncodeChat(std::span<const ChatTurn> turns) const;

  // The bytes that a piece stands for: "▁" as a space, a byte piece as its byte (so maybe not UTF-8 by
  // itself), control pieces as nothing. Concatenating pieces gives the text; only the space that
  // SentencePiece puts before a text's very first piece is extra.
  std::string_view PieceBytes(int32_t id) const;

  // Whole-sequence decode.
  std::string Decode(std::span<const int32_t> ids) const;

 private:
  Tokenizer();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bough
