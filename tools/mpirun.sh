#!/bin/sh
# mpirun.sh RANKS PROGRAM [ARG...]: one group's ranks on this machine, with the settings that every use
# of MPI in this project wants. A rank that waits gives its core away, because a machine with fewer
# cores than ranks must still make progress; nothing leaves the host.
ranks=$1
shift
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
exec mpirun --quiet -np "$ranks" --oversubscribe --bind-to none \
  --mca mpi_yield_when_idle 1 --mca btl self,vader --mca btl_vader_single_copy_mechanism none \
  --mca plm isolated --mca orte_base_help_aggregate 0 "$@"
