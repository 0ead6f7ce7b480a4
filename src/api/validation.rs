//! What can be said of a spec without looking at other objects, in words for people.
//! Repeats the CEL of the types, because old API servers have none.
