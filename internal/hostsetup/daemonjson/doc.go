// Package daemonjson edits the text of a Docker daemon's configuration file.
//
// The file belongs to its administrator, so it is edited as text: no key but
// ours is parsed into a value and written out again, and order, indentation
// and spelling of everything else stay. Two keys are ours:
//
//	{
//	  "log-driver": "local",
//	  "default-runtime": "particle",                  member of the top object
//	  "runtimes": {
//	    "particle": { "path": "/usr/local/bin/…" }    member of that object
//	  }
//	}
//
// The invariant: for every text Merge accepts that does not name our runtime
// already, Unmerge(Merge(text)) is that text, byte for byte. What a merge has
// replaced is kept in an Edit, so that taking our keys out also works after the
// administrator has changed other parts of the file.
//
// The functions are pure; reading and writing the file is the caller's.
package daemonjson
