/* The lease of a job, as waybill/ledger/queries.py has it: CLAIM, RENEW, SETTLE, RESCUE, and what can go wrong between.
 *
 * One job, three workers, one control, a broker that loses and doubles doorbells, a clock that lets leases run out when it
 * likes (a worker may be frozen for any time), workers that die at any step, and a ledger that may carry a statement out
 * and lose the answer, so that it is sent again. One job is enough: statements on different jobs never touch each other.
 *
 * FENCE says what SETTLE looks at before it changes anything:
 *   2  the token of the lease and the state   (what we do)
 *   1  the state only                         (looks safe: "only a running job can end")
 *   0  nothing                                (an insert of the result, an update by id)
 *
 * Checked by scripts/check_protocol.sh: 2 holds; with 1 a worker that was given up hands back or ends a job that another
 * one holds; with 0 a job gets two results.
 */

#ifndef FENCE
#define FENCE 2
#endif

#define WORKERS    3
#define MAX_LOSSES 3   /* workers/control.py: then the job is put aside */
#define MAX_BACKS  3   /* retries and hand-backs; the real budget of attempts is as finite */
#define MAX_BELLS  2   /* doorbells in the broker at once; more of them show nothing new */

mtype = { routed, running, succeeded, dead };

/* --- the ledger: each atomic block that touches these is one SQL statement ------------------------------------------- */

mtype state = routed;
byte lease_token = 0;          /* 0 = none; others come from a sequence and are never given out twice */
byte next_token = 1;
bool expired = false;          /* lease_until < now() */
byte losses = 0;
byte effects = 0;              /* results stored and told to somebody */
byte answer_of = 0;            /* token of the attempt whose answer is the result */
byte backs = 0;
bool booked[16] = false;        /* attempts, by token: written by the claim, before the call */

/* --- the broker ------------------------------------------------------------------------------------------------------ */

byte bells = 1;

#define is_final (state == succeeded || state == dead)

inline claim(mine) {
    atomic {
        if
        :: state == routed ->
            state = running; expired = false;
            lease_token = next_token; mine = next_token; next_token++;
            booked[mine] = true
        :: else -> mine = 0
        fi
    }
}

/* The answer becomes the result. Where the guard fails nothing of the job changes (the cost is booked all the same). */
inline settle_with_answer(mine) {
    atomic {
        if
#if FENCE == 2
        :: state == running && lease_token == mine ->
#elif FENCE == 1
        :: state == running ->
#else
        :: true ->
#endif
#if FENCE != 0
            assert(lease_token == mine);       /* only the holder of the lease may end the job */
#endif
            effects++;
            answer_of = mine;
            state = succeeded; lease_token = 0; expired = false
#if FENCE != 0
        :: else -> skip
#endif
        fi
    }
}

/* Handed back, or to be tried again. */
inline settle_without_answer(mine) {
    atomic {
        if
#if FENCE == 2
        :: state == running && lease_token == mine ->
#elif FENCE == 1
        :: state == running ->
#else
        :: true ->
#endif
#if FENCE != 0
            assert(lease_token == mine);
#endif
            backs++; state = routed; lease_token = 0; expired = false;
            if :: bells < MAX_BELLS -> bells++ :: true -> skip fi
#if FENCE != 0
        :: else -> skip
#endif
        fi
    }
}

/* --- the processes --------------------------------------------------------------------------------------------------- */

active [WORKERS] proctype worker() {
    byte mine;
end_idle:
    do
    :: atomic { bells > 0 -> bells-- };
        if :: bells < MAX_BELLS -> bells++ :: true -> skip fi;      /* delivered twice */
        claim(mine);
        if
        :: mine == 0 -> goto forgotten                             /* somebody has it, or it has ended */
        :: mine != 0 -> skip
        fi;
        assert(booked[mine]);                                      /* no call is made that the ledger does not know */
working:
        do
        :: atomic { state == running && lease_token == mine && expired -> expired = false }   /* RENEW by the token */
        :: true -> settle_with_answer(mine); goto answered
        :: backs < MAX_BACKS -> settle_without_answer(mine); goto forgotten
        :: true -> goto forgotten                                  /* kill -9: nothing is said to anybody */
        od;
answered:
        if
        :: true -> settle_with_answer(mine)                        /* the first answer of the ledger was lost */
        :: true -> skip
        fi;
forgotten:
        mine = 0
    od
}

active proctype clock() {
end_clock:
    do
    :: atomic { state == running && !expired -> expired = true }
    od
}

active proctype broker_loss() {
end_loss:
    do
    :: atomic { bells > 0 && state == routed -> bells-- }
    od
}

active proctype control() {
end_control:
    do
    /* RESCUE */
    :: atomic {
        state == running && expired ->
            losses++; lease_token = 0; expired = false;
            if
            :: losses >= MAX_LOSSES -> state = dead
            :: else -> state = routed
            fi
        }
    /* STALE: routed and not heard of */
    :: atomic { state == routed && bells == 0 -> bells++ }
    od
}

/* Watches every state. */
active proctype monitor() {
end_monitor:
    do
    :: atomic { effects > 1 -> assert(false) }                     /* at most one effect per job */
    :: atomic { state == succeeded && answer_of == 0 -> assert(false) }
    :: atomic { state == dead && effects > 0 -> assert(false) }    /* what was answered is never put aside */
    od
}
