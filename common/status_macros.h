// Early return on a bad absl::Status, with the names and meaning that abseil users know.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define RETURN_IF_ERROR(expr)                            \
  do {                                                   \
    if (absl::Status status_ = (expr); !status_.ok()) {  \
      return status_;                                    \
    }                                                    \
  } while (false)

#define BOUGH_CONCAT_INNER(a, b) a##b
#define BOUGH_CONCAT(a, b) BOUGH_CONCAT_INNER(a, b)

// ASSIGN_OR_RETURN(auto x, StatusOrX());
#define ASSIGN_OR_RETURN(lhs, expr) \
  BOUGH_ASSIGN_OR_RETURN(BOUGH_CONCAT(status_or_, __LINE__), lhs, expr)
#define BOUGH_ASSIGN_OR_RETURN(tmp, lhs, expr) \
  auto tmp = (expr);                           \
  if (!tmp.ok()) return std::move(tmp).status(); \
  lhs = *std::move(tmp)
