"""What a run asks of the host besides model calls. The wire between the agent SDK and the server.

Every request has ``Perdure-Lane`` and ``Perdure-Ordinal``; the same key and request always get the same answer,
before and after a crash. Bodies and answers are JSON; an error is ``{"error": {code, message, hint, details}}``.

=============================  =====================================  =============================================
POST /perdure/v1/begin         {}                                     {"run_id", "input", "agent"}
POST /perdure/v1/step          {"name", "on_doubt": "retry" (default  {"status": "run", "attempt": n,
                               for steps) | "ask" (default: tools)    "idempotency_key": K} or {"status": "done",
                               | "fail", "args"?: JSON}               "result"} or {"status": "failed", "error"}
POST /perdure/v1/step/end      {"result"} or {"error": {..}}, under   {"result"} or {"error"}: what is recorded (the
                               the SAME lane and ordinal as its step  first acknowledged end wins: use this one)
POST /perdure/v1/wait          {"kind": "time", "seconds"}            {"kind": "time"}
                               {"kind": "signal", "name",             {"kind": "signal", "value", "timed_out": bool}
                               "timeout_s"?}
                               {"kind": "approval", "prompt",         {"kind": "approval", "approved", "comment",
                               "show"?, "timeout_s"?}                 "by", "timed_out"} (a timeout: not approved)
POST /perdure/v1/emit          {"name", "value"}                      {}
POST /perdure/v1/message       {"message": {"role", "content", ..}}   {}
POST /perdure/v1/messages      {}                                     {"messages": [...]} recorded by ``message``
                                                                      before this call was first asked
POST /perdure/v1/complete      {"result"}                             {} and the run ends: completed
POST /perdure/v1/fail          {"error": {"code"?, "message", ..}}    {} and the run ends: failed
POST /v1/chat/completions      } the gateway
GET  /v1/models                }
=============================  =====================================  =============================================
"""
