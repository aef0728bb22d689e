#include "common/tokenizer.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/sentencepiece_model.h"
#include "common/utf8.h"

namespace bough {
namespace {

absl::Status TurnError(size_t index, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrFormat("chat.messages[%d]: %s", index, what));
}

}  // namespace

struct Tokenizer::Impl {
  std::unique_ptr<SentencePieceModel> model;
};

Tokenizer::Tokenizer() : impl_(std::make_unique<Impl>()) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return absl::NotFoundError(absl::StrCat("tokenizer ", path, " does not exist"));
  }
  const auto invalid = [&](absl::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer ", path, " is not a usable SentencePiece model: ", why));
  };
  if (!std::filesystem::is_regular_file(path, error)) return invalid("not a regular file");
  std::ifstream file(path, std::ios::binary);
  const std::string content(std::istreambuf_iterator<char>(file), {});
  if (file.bad()) return invalid("cannot be read");

  auto model = SentencePieceModel::Parse(content);
  if (!model.ok()) return invalid(model.status().message());
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer);
  tokenizer->impl_->model = *std::move(model);
  return tokenizer;
}

int Tokenizer::vocab_size() const { return impl_->model->vocab_size(); }
int Tokenizer::bos_id() const { return impl_->model->bos_id(); }
int Tokenizer::eos_id() const { return impl_->model->eos_id(); }

std::vector<int32_t> Tokenizer::Encode(std::string_view text) const {
  return impl_->model->Encode(text);
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::EncodeChat(std::span<const ChatTurn> turns) const {
  using Role = ChatTurn::Role;
  if (turns.empty()) {
    return absl::InvalidArgumentError("chat.messages: must have at least one user turn, has 0");
  }
  const size_t first = turns[0].role == Role::kSystem ? 1 : 0;
  std::string system = first == 1 ? turns[0].content + "\n\n" : "";

  std::vector<int32_t> ids = {bos_id()};
  const auto append = [&](const std::string& text) {
    const std::vector<int32_t> piece = Encode(text);
    ids.insert(ids.end(), piece.begin(), piece.end());
  };
  for (size_t i = first; i < turns.size(); ++i) {
    const Role expected = (i - first) % 2 == 0 ? Role::kUser : Role::kAssistant;
    if (turns[i].role != expected) {
      return TurnError(
          i, expected == Role::kUser ? "must be a user turn" : "must be an assistant turn");
    }
    if (expected == Role::kUser) {
      append("[INST] " + (i == first ? system : "") + turns[i].content + " [/INST]");
    } else {
      append(turns[i].content);
      ids.push_back(eos_id());
    }
  }
  if ((turns.size() - first) % 2 == 0) {
    return TurnError(turns.size() - 1, "the last turn must be a user's");
  }
  return ids;
}

std::string_view Tokenizer::PieceBytes(int32_t id) const {
  CHECK(id >= 0 && id < vocab_size()) << id << " of " << vocab_size();
  return impl_->model->Bytes(id);
}

std::string Tokenizer::Decode(std::span<const int32_t> ids) const {
  std::string text;
  bool at_start = true;  // where a piece's leading space is the one that Encode put there
  for (int32_t id : ids) {
    std::string_view bytes = PieceBytes(id);
    if (bytes.empty()) continue;
    if (at_start && impl_->model->BeginsWithSpace(id)) bytes.remove_prefix(1);
    at_start = false;
    text += bytes;
  }
  return ToValidUtf8(text);
}

}  // namespace bough
