add_project_library(worker_core
  SOURCES batch.cc batch_builder.cc block_manager.cc engine.cc live_requests.cc prefix_forest.cc
          request_check.cc scheduler.cc seen_tokens.cc sequence.cc sequence_blocks.cc step_time.cc
  DEPS common absl::btree absl::flat_hash_map absl::flat_hash_set absl::status absl::strings
       absl::synchronization absl::time)
