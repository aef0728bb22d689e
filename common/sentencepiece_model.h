// A SentencePiece BPE model: text -> piece ids, id for id what SentencePiece itself gives.
//
// Our own because Debian's libsentencepiece exports the symbols of an older protobuf than gRPC's,
// so the two cannot share a process. It takes what Llama, Mistral and Mixtral publish: BPE with
// byte fallback, identity normalisation, "▁" for spaces and one in front of the text. All else is
// refused.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"

namespace bough {

// Thread-safe after Parse.
class SentencePieceModel {
 public:
  // `serialized` is a model file's content. INVALID_ARGUMENT says what is damaged or not supported.
  static absl::StatusOr<std::unique_ptr<SentencePieceModel>> Parse(std::string_view serialized);

  int vocab_size() const { return static_cast<int>(pieces_.size()); }
  int bos_id() const { return bos_id_; }
  int eos_id() const { return eos_id_; }

  // Malformed UTF-8 reads as U+FFFD.
  std::vector<int32_t> Encode(std::string_view text) const;

  // What piece `id` adds to a text; the contract is Tokenizer::PieceBytes.
  const std::string& Bytes(int32_t id) const { return pieces_[id].bytes; }

  // Whether `id` is a text piece that begins with "▁".
  bool BeginsWithSpace(int32_t id) const { return pieces_[id].begins_with_space; }

 private:
  struct Piece {
    std::string bytes;
    bool begins_with_space = false;
  };
  struct TextPiece {
    int32_t id;
    float score;  // the best pair merges first
  };

  SentencePieceModel() = default;
  const TextPiece* Find(std::string_view name) const;  // nullptr when there is none
  void EncodeWord(std::string_view word, std::vector<int32_t>& ids) const;
  void EncodeSymbol(std::string_view symbol, std::vector<int32_t>& ids) const;

  std::vector<Piece> pieces_;                                // [vocab_size]
  absl::flat_hash_map<std::string, TextPiece> text_pieces_;  // as stored, "▁the"
  std::array<int32_t, 256> byte_ids_ = {};
  int32_t bos_id_ = -1, eos_id_ = -1;
  // No piece has "▁" after another character, so no merge crosses the front of a word: words can be
  // encoded one by one.
  bool words_are_apart_ = true;
};

}  // namespace bough
