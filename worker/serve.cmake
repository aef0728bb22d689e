# The process: the group's side of the link, and what stands around engine and model.
add_project_library(worker_serve
  SOURCES cached_blocks.cc config.cc engine_loop.cc link_messages.cc link_stream.cc load_display.cc
          memory_plan.cc server.cc signals.cc worker_metrics.cc
  DEPS common proto worker_core gRPC::grpc++_reflection absl::flags absl::flat_hash_map
       absl::flat_hash_set absl::str_format absl::time)
target_compile_definitions(worker_serve PRIVATE BOUGH_VERSION="${PROJECT_VERSION}")

add_project_binary(bough-worker SOURCES main.cc
  DEPS worker_serve worker_runner worker_comm kernels_cpu)
