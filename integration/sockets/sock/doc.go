// Package sock calls the socket layer of the kernel by each of its entries: the
// system calls of their own, the multiplexed socketcall of 386, and io_uring in
// three manners. A guard of addresses must stand behind all of them, so tests
// say which entry they use, and addresses are raw bytes: what a C library would
// refuse must reach the kernel.
//
// # Invariants
//
//   - Nothing waits for ever: a socket made here has send and receive timeouts,
//     the patience of its Kernel, and a request by io_uring is given up after it.
//   - Errors are bare errnos, unless the entry itself failed.
//   - A Kernel is for one goroutine; one that uses io_uring stays on its thread.
package sock
