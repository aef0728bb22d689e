// Makes the plan that attention_work.cuh describes: one thread block, once per step, so that a
// captured graph may be replayed with other lengths, tables and nodes.
//
// A source is a node or a sequence, in this order; each yields entries. A prefix sum over sources gives
// every entry its place in its list, on the line of cost and among the slots.
#include "kernels/cuda/attention_prefill_plan.h"
#include "kernels/cuda/attention_work.cuh"

namespace bough::cuda {
namespace {

constexpr int kPlanThreads = 1024;
constexpr int kPlanWarps = kPlanThreads / kWarpSize;

// Costs, in eighths of the time in which a thread block reads a block of the cache. What a part takes
// besides: its queries, the merge of its warps, its rows' way to the workspace.
constexpr int kStreamBlockCost = 8, kStreamPartCost = 6;
constexpr int kTileBlockCost = 8, kHalfTileBlockCost = 5, kTilePartCost = 12;

// What a source adds to the two lists.
struct Counts {
  int entries[2] = {}, cost[2] = {}, rows[2] = {};

  __device__ void Add(const Counts& c) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      entries[k] += c.entries[k];
      cost[k] += c.cost[k];
      rows[k] += c.rows[k];
    }
  }
  // The lane's counts of `offset` lanes before.
  __device__ Counts ShiftedUp(int offset) const {
    Counts c;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      c.entries[k] = __shfl_up_sync(kFullWarp, entries[k], offset);
      c.cost[k] = __shfl_up_sync(kFullWarp, cost[k], offset);
      c.rows[k] = __shfl_up_sync(kFullWarp, rows[k], offset);
    }
    return c;
  }
};

// Units [first_unit, first_unit + num_units) over keys [key_begin, key_end).
struct Source {
  int first_unit = 0, num_units = 0, table_seq = 0, key_begin = 0, key_end = 0;
  bool is_own = false;

  __device__ int NumBlocks() const {
    return key_begin < key_end ? CeilDiv(key_end, kBlockKeys) - key_begin / kBlockKeys : 0;
  }
};

struct Planner {
  const AttentionParams& p;
  const WorkPlan& plan;
  const bool all_in_plan;
  SharedNode* nodes;    // [num_nodes] shared memory; keys clipped to what the window leaves
  int2* node_entries;   // [num_nodes] shared memory: first tile entry, stream entry
  int* cost_begins[2];  // [entries] shared memory
  int heads = p.HeadsPerKv();
  int tile_units = kTileRows / heads;

  __device__ int num_sources() const { return p.num_nodes + p.num_seqs; }
  __device__ int FirstUnit(int seq) const {
    return all_in_plan ? p.cu_seqlens_q[seq] - p.cu_seqlens_q[0] : seq;
  }
  __device__ int FirstPosition(int seq) const {
    return p.seqlens_kv[seq] - (p.cu_seqlens_q[seq + 1] - p.cu_seqlens_q[seq]);
  }

  // A warp a node. The first key that any of its rows sees is the first query's that comes first.
  __device__ void LoadNodes() const {
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    for (int n = warp; n < p.num_nodes; n += kPlanWarps) {
      SharedNode node = p.nodes[n];
      if (p.sliding_window > 0) {
        int first = 1 << 30;
        for (int s = node.seq_begin + lane; s < node.seq_end; s += kWarpSize) {
          first = min(first, FirstPosition(s));
        }
        first = -WarpReduce(-first, Max{});
        node.key_begin = max(node.key_begin, first + 1 - p.sliding_window);
      }
      if (lane == 0) nodes[n] = node;
    }
  }

  __device__ Source SourceOf(int i) const {
    Source source;
    if (i < p.num_nodes) {
      const SharedNode node = nodes[i];
      if (node.seq_begin >= node.seq_end || node.key_begin >= node.key_end) return source;
      source.first_unit = FirstUnit(node.seq_begin);
      source.num_units = FirstUnit(node.seq_end) - source.first_unit;
      source.table_seq = node.seq_begin;
      source.key_begin = node.key_begin;
      source.key_end = node.key_end;
      return source;
    }
    const int seq = i - p.num_nodes;
    const int num_q = p.cu_seqlens_q[seq + 1] - p.cu_seqlens_q[seq];
    source.is_own = true;
    source.table_seq = seq;
    source.first_unit = FirstUnit(seq);
    source.num_units = all_in_plan ? num_q : num_q == 1 ? 1 : 0;
    if (p.seqlens_kv[seq] <= 0) return source;
    source.key_end = p.seqlens_kv[seq];
    source.key_begin = p.num_nodes > 0 ? p.own_begin[seq] : 0;
    if (p.sliding_window > 0) {
      source.key_begin = max(source.key_begin, FirstPosition(seq) + 1 - p.sliding_window);
    }
    return source;
  }

  // The units of a source's last tile if they are few enough for the stream kernel.
  __device__ int StreamUnits(const Source& s) const {
    const int rest = s.is_own ? s.num_units : s.num_units % tile_units;
    return rest * heads <= kStreamRows ? rest : 0;
  }
  __device__ int TileBlockCost(int units) const {
    return units * heads > kTileRows / 2 ? kTileBlockCost : kHalfTileBlockCost;
  }

  // Calls take(kind, first unit of the source's, number of units, block cost, part cost) for each of
  // its entries.
  template <typename Take>
  __device__ void ForEachEntry(const Source& s, Take take) const {
    const int stream_units = StreamUnits(s), num_tile_units = s.num_units - stream_units;
    for (int i = 0; i < num_tile_units; i += tile_units) {
      const int units = min(tile_units, num_tile_units - i);
      take(kTileWork, i, units, TileBlockCost(units), kTilePartCost);
    }
    if (stream_units > 0) {
      take(kStreamWork, num_tile_units, stream_units, kStreamBlockCost, kStreamPartCost);
    }
  }

  __device__ Counts CountsOf(int i) const {
    Counts counts;
    const Source source = SourceOf(i);
    ForEachEntry(source, [&](WorkKind kind, int, int units, int block_cost, int part_cost) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {  // constant indices keep the counts in registers
        if (k != kind) continue;
        ++counts.entries[k];
        counts.cost[k] += source.NumBlocks() * block_cost + part_cost;
        counts.rows[k] += units * heads;
      }
    });
    return counts;
  }

  // Writes a source's entries, the first of them at `at`, and of a sequence's its units.
  __device__ void WriteEntries(int i, Counts at) const {
    const Source source = SourceOf(i);
    if (i < p.num_nodes) node_entries[i] = {at.entries[kTileWork], at.entries[kStreamWork]};
    const int own_entry = at.entries[kStreamWork];
    ForEachEntry(source, [&](WorkKind kind, int first, int units, int block_cost, int part_cost) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if (k != kind) continue;
        plan.entries[k][at.entries[k]] = {.first_unit = source.first_unit + first,
                                          .num_units = units,
                                          .table_seq = source.table_seq,
                                          .key_begin = source.key_begin,
                                          .key_end = source.key_end,
                                          .cost_begin = at.cost[k],
                                          .block_cost = static_cast<int16_t>(block_cost),
                                          .is_own = source.is_own,
                                          .row_begin = at.rows[k]};
        cost_begins[k][at.entries[k]] = at.cost[k];
        ++at.entries[k];
        at.cost[k] += source.NumBlocks() * block_cost + part_cost;
        at.rows[k] += units * heads;
      }
    });
    if (i >= p.num_nodes) WriteUnits(source, i - p.num_nodes, own_entry);
  }

  __device__ void WriteUnits(const Source& source, int seq, int own_entry) const {
    const int num_units = all_in_plan ? source.num_units : 1;
    for (int i = 0; i < num_units; ++i) {
      WorkUnit unit = {.token = source.num_units > 0 ? p.cu_seqlens_q[seq] + i : -1,
                       .position = FirstPosition(seq) + i,
                       .num_blocks = max(1, source.NumBlocks()),
                       .entries = {-1, -1, -1, -1, -1}};
      if (source.num_units > 0) unit.entries[kMaxForestDepth] = 2 * own_entry + kStreamWork;
      plan.units[source.first_unit + i] = unit;
    }
  }

  // A warp a node: tells its units of its entries.
  __device__ void LinkNodes() const {
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    for (int n = warp; n < p.num_nodes; n += kPlanWarps) {
      const Source source = SourceOf(n);
      if (source.num_units == 0) continue;
      const SharedNode node = nodes[n];
      int level = 0;  // nodes around this one
      for (int m = lane; m < p.num_nodes; m += kWarpSize) {
        const SharedNode other = nodes[m];
        level += other.seq_begin <= node.seq_begin && node.seq_end <= other.seq_end &&
                 other.key_begin < node.key_begin && other.key_begin < other.key_end;
      }
      level = WarpReduce(level, Add{});
      const int num_tile_units = source.num_units - StreamUnits(source);
      for (int i = lane; i < source.num_units; i += kWarpSize) {
        WorkUnit* unit = plan.units + source.first_unit + i;
        unit->entries[level] = i < num_tile_units
                                   ? 2 * (node_entries[n].x + i / tile_units) + kTileWork
                                   : 2 * node_entries[n].y + kStreamWork;
        atomicAdd(&unit->num_blocks, source.NumBlocks());
      }
    }
  }

  // Lists and where thread blocks begin, of `total`.
  __device__ void WriteList(WorkKind kind, const Counts& total, int64_t first_slot,
                            int grid) const {
    const int num_entries = total.entries[kind], head_cost = total.cost[kind];
    const int most = kind == kTileWork ? kTileBlockCost : kStreamBlockCost;
    const int stretch = max(most, CeilDiv(head_cost * p.num_kv_heads, grid));
    if (threadIdx.x == 0) {
      plan.lists[kind] = {.num_entries = num_entries,
                          .head_cost = head_cost,
                          .stretch = stretch,
                          .num_rows = total.rows[kind],
                          .first_slot = first_slot};
    }
    for (int c = threadIdx.x; c <= grid; c += kPlanThreads) {
      WorkStart start = {p.num_kv_heads, 0, 0};
      const int64_t at = int64_t{c} * stretch;
      if (at < int64_t{head_cost} * p.num_kv_heads) {
        start = StartAt(kind, num_entries, static_cast<int>(at) / head_cost,
                        static_cast<int>(at) % head_cost);
      }
      plan.starts[kind * (WorkPlan::kMaxGrid + 1) + c] = start;
    }
  }

  // The first block at `cost` or behind it.
  __device__ WorkStart StartAt(WorkKind kind, int num_entries, int kv_head, int cost) const {
    int low = 0, high = num_entries;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (cost_begins[kind][middle] <= cost ? low : high) = middle;
    }
    const WorkEntry e = plan.entries[kind][low];
    const int block = CeilDiv(cost - e.cost_begin, e.block_cost);
    if (block == 0 || block < e.NumBlocks()) return {kv_head, low, block};
    return low + 1 < num_entries ? WorkStart{kv_head, low + 1, 0} : WorkStart{kv_head + 1, 0, 0};
  }
};

// The sum of the counts of all threads before this one; `total` becomes that of all.
__device__ Counts SumBefore(const Counts& mine, Counts& total) {
  __shared__ Counts warp_sums[kPlanWarps];
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  Counts up_to = mine;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const Counts other = up_to.ShiftedUp(offset);
    if (lane >= offset) up_to.Add(other);
  }
  if (lane == kWarpSize - 1) warp_sums[warp] = up_to;
  __syncthreads();
  Counts before;
  for (int w = 0; w < kPlanWarps; ++w) {
    if (w < warp) before.Add(warp_sums[w]);
    total.Add(warp_sums[w]);
  }
  const Counts previous = up_to.ShiftedUp(1);
  if (lane > 0) before.Add(previous);
  return before;
}

__global__ void __launch_bounds__(kPlanThreads, 1)
    PlanAttentionKernel(AttentionParams p, WorkPlan plan, bool all_in_plan, int max_tiles,
                        int tile_grid, int stream_grid) {
  extern __shared__ __align__(16) char shared_bytes[];
  SharedNode* nodes = reinterpret_cast<SharedNode*>(shared_bytes);
  int2* node_entries = reinterpret_cast<int2*>(nodes + p.num_nodes);
  int* tile_costs = reinterpret_cast<int*>(node_entries + p.num_nodes);
  const Planner planner{p,     plan,         all_in_plan,
                        nodes, node_entries, {tile_costs, tile_costs + max_tiles}};
  WaitForPrevious();
  planner.LoadNodes();
  __syncthreads();
  const int run = CeilDiv(planner.num_sources(), kPlanThreads);
  const int begin = threadIdx.x * run, end = min(begin + run, planner.num_sources());
  Counts mine, total;
  for (int i = begin; i < end; ++i) mine.Add(planner.CountsOf(i));
  Counts at = SumBefore(mine, total);
  for (int i = begin; i < end; ++i) {
    planner.WriteEntries(i, at);
    at.Add(planner.CountsOf(i));
  }
  __syncthreads();
  planner.LinkNodes();
  planner.WriteList(kTileWork, total, 0, tile_grid);
  const int64_t num_tile_slots =
      total.entries[kTileWork] == 0
          ? 0
          : int64_t{total.rows[kTileWork]} * p.num_kv_heads + int64_t{tile_grid} * kTileRows;
  planner.WriteList(kStreamWork, total, num_tile_slots, stream_grid);
}

// Sizes of the plan's arrays, for so many sequences, units and nodes.
struct PlanSizes {
  int64_t max_units, max_tiles, max_streams;

  PlanSizes(int64_t num_units, int64_t num_seqs, int64_t num_nodes, int heads_per_kv)
      : max_units(num_units),
        max_tiles(num_nodes + kMaxForestDepth * num_units * heads_per_kv / kTileRows),
        max_streams(num_nodes + num_seqs) {}

  static int64_t Aligned(int64_t num_bytes) { return (num_bytes + 255) / 256 * 256; }
  static int64_t HeadBytes() {
    return WorkPlan::kMaxCounters * sizeof(int32_t) + Aligned(2 * sizeof(WorkList)) +
           Aligned(2 * (WorkPlan::kMaxGrid + 1) * sizeof(WorkStart));
  }
  int64_t NumBytes() const {
    return HeadBytes() + Aligned(max_tiles * sizeof(WorkEntry)) +
           Aligned(max_streams * sizeof(WorkEntry)) + Aligned(max_units * sizeof(WorkUnit));
  }
};

int64_t NumSlots(int64_t num_units, int num_heads) {
  return (kMaxForestDepth + 1) * num_units * num_heads +
         WorkPlan::kMaxGrid * (kTileRows + kStreamRows);
}

int64_t MaxUnits(const AttentionParams& p) {
  return AllInPlan(p) ? int64_t{p.num_seqs} * p.max_seqlen_q : p.num_seqs;
}

PlanSizes SizesOf(const AttentionParams& p) {
  return {MaxUnits(p), p.num_seqs, p.num_nodes, p.HeadsPerKv()};
}

}  // namespace

int64_t PlanWorkspaceBytes(int max_num_tokens, int max_num_seqs, int num_heads, int num_kv_heads,
                           int head_dim) {
  const int heads = num_heads / num_kv_heads;
  const int64_t seq_units = std::max(1, kStreamRows / heads);
  const PlanSizes sizes(max_num_seqs * seq_units, max_num_seqs,
                        int64_t{kMaxForestDepth} * max_num_seqs, heads);
  const int64_t num_units =
      std::max<int64_t>(max_num_seqs, std::min<int64_t>(max_num_tokens, max_num_seqs * seq_units));
  return sizes.NumBytes() +
         NumSlots(num_units, num_heads) * WorkPlan::SlotFloats(head_dim) * sizeof(float) +
         PrefillPlan::NumBytes(PrefillPlan::MaxItems(max_num_tokens, max_num_seqs, heads));
}

// Behind the slots.
PrefillPlan PrefillPlanIn(const AttentionParams& p) {
  const WorkPlan plan = PlanIn(p);
  return PrefillPlan::At(plan.slots + NumSlots(plan.max_units, p.num_heads) *
                                          WorkPlan::SlotFloats(p.head_dim),
                         p.num_seqs * CeilDiv(p.max_seqlen_q * p.HeadsPerKv(), kPrefillRows));
}

WorkPlan PlanIn(const AttentionParams& p) {
  CHECK(p.workspace != nullptr) << "attention needs AttentionWorkspaceBytes of workspace";
  CHECK_LE(p.num_nodes, kMaxForestDepth * p.num_seqs);
  const PlanSizes sizes = SizesOf(p);
  CHECK_LE(sizes.max_units * p.num_kv_heads, WorkPlan::kMaxCounters);
  char* at = static_cast<char*>(p.workspace);
  const auto take = [&](int64_t num_bytes) {
    char* const taken = at;
    at += PlanSizes::Aligned(num_bytes);
    return taken;
  };
  WorkPlan plan;
  plan.counters = reinterpret_cast<int32_t*>(take(WorkPlan::kMaxCounters * sizeof(int32_t)));
  plan.lists = reinterpret_cast<WorkList*>(take(2 * sizeof(WorkList)));
  plan.starts =
      reinterpret_cast<WorkStart*>(take(2 * (WorkPlan::kMaxGrid + 1) * sizeof(WorkStart)));
  plan.entries[kTileWork] = reinterpret_cast<WorkEntry*>(take(sizes.max_tiles * sizeof(WorkEntry)));
  plan.entries[kStreamWork] =
      reinterpret_cast<WorkEntry*>(take(sizes.max_streams * sizeof(WorkEntry)));
  plan.units = reinterpret_cast<WorkUnit*>(take(sizes.max_units * sizeof(WorkUnit)));
  plan.slots = reinterpret_cast<float*>(at);
  plan.max_units = static_cast<int>(sizes.max_units);
  return plan;
}

void LaunchPlan(const AttentionParams& p, const WorkPlan& plan, Stream stream) {
  const PlanSizes sizes = SizesOf(p);
  const int64_t bytes = p.num_nodes * (sizeof(SharedNode) + sizeof(int2)) +
                        (sizes.max_tiles + sizes.max_streams) * sizeof(int);
  constexpr int kMaxBytes = 220 * 1024;
  CHECK_LE(bytes, kMaxBytes) << p.num_seqs << " sequences and " << p.num_nodes << " nodes";
  static const bool allowed = [] {
    CUDA_CHECK(cudaFuncSetAttribute(PlanAttentionKernel,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, kMaxBytes));
    return true;
  }();
  (void)allowed;
  Launch(PlanAttentionKernel, dim3(1), kPlanThreads, bytes, stream, p, plan, AllInPlan(p),
         static_cast<int>(sizes.max_tiles), p.num_nodes > 0 ? TileAttentionGrid(p) : 1,
         StreamAttentionGrid());
}

}  // namespace bough::cuda
