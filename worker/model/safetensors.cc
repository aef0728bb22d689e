#include "worker/model/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"

namespace bough {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kLengthBytes = 8;
// The format's own limit.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr int64_t kMaxElements = int64_t{1} << 48;

template <typename... Args>
absl::Status Bad(const std::string& path, const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", args...));
}

std::optional<DType> ParseDType(const std::string& name) {
  if (name == "F32") return DType::kF32;
  if (name == "F16") return DType::kF16;
  if (name == "BF16") return DType::kBF16;
  if (name == "F8_E4M3") return DType::kF8E4M3;
  if (name == "I32") return DType::kI32;
  return std::nullopt;
}

// A field of a tensor's entry that must be an array of non-negative integers.
std::optional<std::vector<int64_t>> ParseNumbers(const Json& entry, const char* field) {
  if (!entry.contains(field) || !entry[field].is_array()) return std::nullopt;
  std::vector<int64_t> numbers;
  for (const Json& value : entry[field]) {
    if (!value.is_number_unsigned() || value.get<uint64_t>() > INT64_MAX) return std::nullopt;
    numbers.push_back(value.get<int64_t>());
  }
  return numbers;
}

// Elements of `shape`; nullopt when there are too many to be true.
std::optional<int64_t> NumElements(const std::vector<int64_t>& shape) {
  int64_t product = 1;
  for (int64_t size : shape) {
    if (size == 0) return 0;
  }
  for (int64_t size : shape) {
    if (size > kMaxElements / product) return std::nullopt;
    product *= size;
  }
  return product;
}

absl::StatusOr<TensorView> ParseEntry(const std::string& name, const Json& entry,
                                      std::span<const uint8_t> data, const std::string& path) {
  const std::string who = absl::StrCat("tensor '", name, "': ");
  if (!entry.is_object()) return Bad(path, who, "its header entry is not an object");
  if (!entry.contains("dtype") || !entry["dtype"].is_string()) {
    return Bad(path, who, "dtype is missing or not a string");
  }
  TensorView view;
  view.name = name;
  const std::string dtype_name = entry["dtype"].get<std::string>();
  const std::optional<DType> dtype = ParseDType(dtype_name);
  if (!dtype) {
    return Bad(path, who, "dtype ", dtype_name,
               " is not served (only F32, F16, BF16, F8_E4M3, I32)");
  }
  view.dtype = *dtype;
  const auto shape = ParseNumbers(entry, "shape");
  if (!shape) return Bad(path, who, "shape must be an array of integers, 0 or larger");
  view.shape = *shape;

  const auto offsets = ParseNumbers(entry, "data_offsets");
  if (!offsets || offsets->size() != 2) {
    return Bad(path, who, "data_offsets must be two integers, 0 or larger");
  }
  const int64_t begin = (*offsets)[0], end = (*offsets)[1];
  const std::string range = absl::StrCat("data_offsets [", begin, ", ", end, ")");
  if (begin > end) return Bad(path, who, range, " run backwards");
  if (end > static_cast<int64_t>(data.size())) {
    return Bad(path, who, range, " end past the file's data, which has ", data.size(),
               " bytes; is the file truncated?");
  }
  const auto count = NumElements(*shape);
  if (!count || *count * static_cast<int64_t>(SizeOf(*dtype)) != end - begin) {
    return Bad(path, who, range, " hold ", end - begin, " bytes, but shape ", ShapeText(*shape),
               " of ", dtype_name, " needs ",
               count ? absl::StrCat(*count * SizeOf(*dtype)) : "more than any file has");
  }
  view.bytes = data.subspan(begin, end - begin);
  return view;
}

// REQUIRES: `tensors` in the order of their data.
absl::Status CheckCoverage(const std::vector<TensorView>& tensors, std::span<const uint8_t> data,
                           const std::string& path) {
  int64_t covered = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t begin = tensors[i].bytes.data() - data.data();
    if (begin < covered) {
      return Bad(path, "tensor '", tensors[i].name, "' begins at byte ", begin,
                 " and overlaps tensor '", tensors[i - 1].name, "', which ends at ", covered);
    }
    if (begin > covered) {
      return Bad(path, "bytes [", covered, ", ", begin, ") before tensor '", tensors[i].name,
                 "' belong to no tensor");
    }
    covered += tensors[i].bytes.size();
  }
  if (covered != static_cast<int64_t>(data.size())) {
    return Bad(path, "bytes [", covered, ", ", data.size(), ") at the end belong to no tensor");
  }
  return absl::OkStatus();
}

}  // namespace

std::string ShapeText(std::span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::StatusOr<std::vector<TensorView>> ParseSafetensors(std::span<const uint8_t> file,
                                                         const std::string& path) {
  if (file.size() < kLengthBytes) {
    return Bad(path, "has ", file.size(),
               " bytes; a safetensors file begins with 8 bytes of length");
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), kLengthBytes);
  if (header_bytes > kMaxHeaderBytes || header_bytes > file.size() - kLengthBytes) {
    return Bad(path, "header length ", header_bytes, " exceeds ",
               std::min<uint64_t>(kMaxHeaderBytes, file.size() - kLengthBytes),
               ", the bytes that follow it or the format's limit");
  }
  const char* text = reinterpret_cast<const char*>(file.data() + kLengthBytes);
  const Json header = Json::parse(text, text + header_bytes, nullptr, /*allow_exceptions=*/false);
  if (header.is_discarded() || !header.is_object()) {
    return Bad(path, "header is not a JSON object");
  }
  const std::span<const uint8_t> data = file.subspan(kLengthBytes + header_bytes);
  std::vector<TensorView> tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    ASSIGN_OR_RETURN(TensorView view, ParseEntry(name, entry, data, path));
    tensors.push_back(std::move(view));
  }
  std::sort(tensors.begin(), tensors.end(), [](const TensorView& a, const TensorView& b) {
    return std::pair(a.bytes.data(), a.bytes.size()) < std::pair(b.bytes.data(), b.bytes.size());
  });
  RETURN_IF_ERROR(CheckCoverage(tensors, data, path));
  return tensors;
}

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  struct stat info;
  const bool is_file = fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  void* address = MAP_FAILED;
  if (is_file && info.st_size > 0) {
    address = mmap(nullptr, info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
  }
  const int error = errno;
  close(fd);
  if (!is_file) return Bad(path, "is not a file");
  if (info.st_size == 0) return Bad(path, "is empty");
  if (address == MAP_FAILED) {
    return absl::UnavailableError(absl::StrCat(path, ": mmap: ", std::strerror(error)));
  }
  return std::unique_ptr<MappedFile>(
      new MappedFile({static_cast<const uint8_t*>(address), static_cast<size_t>(info.st_size)}));
}

MappedFile::~MappedFile() { munmap(const_cast<uint8_t*>(bytes_.data()), bytes_.size()); }

}  // namespace bough
