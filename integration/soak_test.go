//go:build soak

package integration

// soak says that each fault is shown on each engine with each store, and what is said in
// numbers in large ones: what takes hours where a change is to be tested in one.
const soak = true
