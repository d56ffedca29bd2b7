;; What every hostile guest has: memory, a manifest that asks for the service's name (a trial names none), and a
;; configuration that is taken. The text of a guest stands in place of the last line.
;;
;; Below 4096: what is answered. From there on: arguments, gone with the next call.
  (memory (export "memory") 1)
  (global $next (mut i32) (i32.const 4096))
  (data (i32.const 64) "hostile")
  (data (i32.const 72) "0.1.0")
  (data (i32.const 104) "service")
  ;; The manifest at 0: name, version, no schema, one string, no headers.
  (data (i32.const 0) "\40\00\00\00\07\00\00\00\48\00\00\00\05\00\00\00\00\00\00\00\00\00\00\00\60\00\00\00\01\00\00\00")
  (data (i32.const 96) "\68\00\00\00\07\00\00\00")
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
    (global.set $next (i32.add (local.get $at) (local.get 3)))
    (local.get $at))
  (func $done (global.set $next (i32.const 4096)))
  (func (export "tollgate:policy/lifecycle@0.1.0#describe") (result i32) (i32.const 0))
  ;; Whether there is no user: the first string is empty.
  (func $is_trial (param $strings i32) (result i32) (i32.eqz (i32.load offset=4 (local.get $strings))))
  ;; The text of a guest.
