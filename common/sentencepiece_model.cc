#include "common/sentencepiece_model.h"

#include <algorithm>
#include <cstdio>
#include <queue>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "common/status_macros.h"
#include "common/utf8.h"
#include "sentencepiece/model.pb.h"

namespace bough {
namespace {

using sentencepiece::ModelProto;
using sentencepiece::NormalizerSpec;
using sentencepiece::TrainerSpec;
using ProtoPiece = ModelProto::SentencePiece;

constexpr char kSpace[] = "\u2581";  // "▁"

absl::Status CheckSupported(const ModelProto& model) {
  const TrainerSpec& trainer = model.trainer_spec();
  const NormalizerSpec& normalizer = model.normalizer_spec();
  const auto refuse = [](auto... what) {
    return absl::InvalidArgumentError(absl::StrCat("not supported: ", what...));
  };
  if (model.pieces().empty()) return absl::InvalidArgumentError("it has no pieces");
  if (trainer.model_type() != TrainerSpec::BPE) {
    return refuse("model_type must be BPE, is ", TrainerSpec::ModelType_Name(trainer.model_type()));
  }
  if (!trainer.byte_fallback()) return refuse("byte_fallback must be true, is false");
  if (trainer.treat_whitespace_as_suffix()) {
    return refuse("treat_whitespace_as_suffix must be false, is true");
  }
  if (!normalizer.precompiled_charsmap().empty()) {
    return refuse("the normalizer must be identity, is ", normalizer.name());
  }
  if (!normalizer.add_dummy_prefix()) return refuse("add_dummy_prefix must be true, is false");
  if (normalizer.remove_extra_whitespaces()) {
    return refuse("remove_extra_whitespaces must be false, is true");
  }
  if (!normalizer.escape_whitespaces()) return refuse("escape_whitespaces must be true, is false");
  return absl::OkStatus();
}

// A run of text that no merge has joined with its neighbours yet; a list by index, -1 = none.
struct Symbol {
  int prev, next;
  std::string_view text;  // empty once merged into its left neighbour
};

// Two neighbours whose concatenation is a piece.
struct Pair {
  int left, right;
  float score;
  size_t num_bytes;  // of the concatenation; another size by now means that the pair is gone

  // The queue's top is the highest score, leftmost first.
  bool operator<(const Pair& other) const {
    return score != other.score ? score < other.score : left > other.left;
  }
};

std::vector<Symbol> SplitIntoCharacters(std::string_view text) {
  std::vector<Symbol> symbols;
  while (!text.empty()) {
    const size_t num_bytes = Utf8CharBytes(text);
    const int i = static_cast<int>(symbols.size());
    symbols.push_back({i - 1, i + 1, text.substr(0, num_bytes)});
    text.remove_prefix(num_bytes);
  }
  if (!symbols.empty()) symbols.back().next = -1;
  return symbols;
}

// The first position > 0 where "▁" follows another character; text.size() when there is none.
size_t WordEnd(std::string_view text) {
  const std::string_view space = kSpace;
  size_t pos = 0;
  while (text.substr(pos).starts_with(space)) pos += space.size();
  return std::min(text.find(space, pos), text.size());
}

// The views lie side by side in one buffer.
std::string_view Concatenation(std::string_view left, std::string_view right) {
  return {left.data(), left.size() + right.size()};
}

}  // namespace

absl::StatusOr<std::unique_ptr<SentencePieceModel>> SentencePieceModel::Parse(
    std::string_view serialized) {
  ModelProto proto;
  if (!proto.ParseFromArray(serialized.data(), static_cast<int>(serialized.size()))) {
    return absl::InvalidArgumentError("it is damaged");
  }
  RETURN_IF_ERROR(CheckSupported(proto));

  std::unique_ptr<SentencePieceModel> model(new SentencePieceModel);
  model->byte_ids_.fill(-1);
  for (int id = 0; id < proto.pieces_size(); ++id) {
    const std::string& name = proto.pieces(id).piece();
    Piece piece;
    unsigned byte = 0;
    switch (proto.pieces(id).type()) {
      case ProtoPiece::NORMAL:
        if (name.empty())
          return absl::InvalidArgumentError(absl::StrCat("piece ", id, " is empty"));
        if (!model->text_pieces_.try_emplace(name, TextPiece{id, proto.pieces(id).score()})
                 .second) {
          return absl::InvalidArgumentError(absl::StrCat("piece ", id, " repeats \"", name, "\""));
        }
        piece.bytes = absl::StrReplaceAll(name, {{kSpace, " "}});
        piece.begins_with_space = absl::StartsWith(name, kSpace);
        model->words_are_apart_ &= WordEnd(name) == name.size();
        break;
      case ProtoPiece::BYTE:
        if (std::sscanf(name.c_str(), "<0x%2X>", &byte) != 1) {
          return absl::InvalidArgumentError(absl::StrCat("piece ", id, " is no byte: ", name));
        }
        model->byte_ids_[byte] = id;
        piece.bytes = std::string(1, static_cast<char>(byte));
        break;
      case ProtoPiece::UNKNOWN:
        piece.bytes = proto.trainer_spec().unk_surface();
        break;
      case ProtoPiece::CONTROL:
        if (name == proto.trainer_spec().bos_piece()) model->bos_id_ = id;
        if (name == proto.trainer_spec().eos_piece()) model->eos_id_ = id;
        break;
      case ProtoPiece::USER_DEFINED:
      case ProtoPiece::UNUSED:
        return absl::InvalidArgumentError(
            absl::StrCat("not supported: piece ", id, " is of type ",
                         ProtoPiece::Type_Name(proto.pieces(id).type())));
    }
    model->pieces_.push_back(std::move(piece));
  }
  for (int byte = 0; byte < 256; ++byte) {
    if (model->byte_ids_[byte] < 0) {
      return absl::InvalidArgumentError(absl::StrFormat("it has no piece <0x%02X>", byte));
    }
  }
  if (model->bos_id_ < 0 || model->eos_id_ < 0) {
    return absl::InvalidArgumentError("it has no BOS or no EOS piece");
  }
  return model;
}

const SentencePieceModel::TextPiece* SentencePieceModel::Find(std::string_view name) const {
  const auto piece = text_pieces_.find(absl::string_view(name.data(), name.size()));
  return piece == text_pieces_.end() ? nullptr : &piece->second;
}

void SentencePieceModel::EncodeSymbol(std::string_view symbol, std::vector<int32_t>& ids) const {
  if (const TextPiece* piece = Find(symbol)) {
    ids.push_back(piece->id);
    return;
  }
  for (const char byte : symbol) ids.push_back(byte_ids_[static_cast<uint8_t>(byte)]);
}

void SentencePieceModel::EncodeWord(std::string_view word, std::vector<int32_t>& ids) const {
  std::vector<Symbol> symbols = SplitIntoCharacters(word);
  std::priority_queue<Pair> pairs;
  const auto add_pair = [&](int left, int right) {
    if (left < 0 || right < 0) return;
    const std::string_view joined = Concatenation(symbols[left].text, symbols[right].text);
    if (const TextPiece* piece = Find(joined)) {
      pairs.push({left, right, piece->score, joined.size()});
    }
  };
  for (size_t i = 1; i < symbols.size(); ++i) add_pair(i - 1, i);

  while (!pairs.empty()) {
    const Pair pair = pairs.top();
    pairs.pop();
    Symbol& left = symbols[pair.left];
    Symbol& right = symbols[pair.right];
    if (left.text.empty() || right.text.empty() ||
        left.text.size() + right.text.size() != pair.num_bytes) {
      continue;
    }
    left.text = Concatenation(left.text, right.text);
    left.next = right.next;
    if (right.next >= 0) symbols[right.next].prev = pair.left;
    right.text = {};
    add_pair(left.prev, pair.left);
    add_pair(pair.left, left.next);
  }
  for (int i = 0; i >= 0; i = symbols[i].next) EncodeSymbol(symbols[i].text, ids);
}

std::vector<int32_t> SentencePieceModel::Encode(std::string_view text) const {
  std::vector<int32_t> ids;
  if (text.empty()) return ids;
  const std::string normalized = kSpace + absl::StrReplaceAll(ToValidUtf8(text), {{" ", kSpace}});
  for (std::string_view rest = normalized; !rest.empty();) {
    const std::string_view word = rest.substr(0, words_are_apart_ ? WordEnd(rest) : rest.size());
    EncodeWord(word, ids);
    rest.remove_prefix(word.size());
  }
  return ids;
}

}  // namespace bough
