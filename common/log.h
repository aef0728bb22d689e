// Structured logs: one JSON object per line on stderr, by spdlog.
//
//   {"ts":"2026-01-01T12:00:00.000Z","level":"info","role":"worker","group":"g0","rank":1,
//    "msg":"request finished","request_id":"abc","tokens":64}
#pragma once

#include <string>
#include <string_view>

#include "nlohmann/json.hpp"

namespace bough {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Fields that every line of this process carries, e.g. {{"role","worker"},{"group","g0"},{"rank",1}}.
// Called once, before threads start. `level`: debug, info, warning or error.
void InitLog(std::string_view level, nlohmann::json process_fields);

// Thread-safe. `fields` is a JSON object; request-bound lines carry request_id (and traceparent when the
// client sent one).
void Log(LogLevel level, std::string_view msg, nlohmann::json fields = nlohmann::json::object());

inline void LogInfo(std::string_view msg, nlohmann::json fields = nlohmann::json::object()) {
  Log(LogLevel::kInfo, msg, std::move(fields));
}
inline void LogWarning(std::string_view msg, nlohmann::json fields = nlohmann::json::object()) {
  Log(LogLevel::kWarning, msg, std::move(fields));
}
inline void LogError(std::string_view msg, nlohmann::json fields = nlohmann::json::object()) {
  Log(LogLevel::kError, msg, std::move(fields));
}

}  // namespace bough
