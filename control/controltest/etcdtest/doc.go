// Package etcdtest runs real etcd servers for tests, of every release that the
// store promises to work with, each a process of its own that can be killed,
// stopped, frozen, wiped, set back to an older state and upgraded. They listen
// on 127.0.0.1 and keep their data in the test's folder.
//
// The current release is the one that the plugin embeds: the test's own program
// runs it, started once more. So a test that uses it begins with
//
//	func TestMain(m *testing.M) { etcdtest.Main(m) }
package etcdtest
